"""The errors vshift raises for people; the command line maps each to its exit code."""

from __future__ import annotations


class VShiftError(Exception):
    """An error the user can fix: what, where, what is allowed, what to do. Exit code 2."""

    exit_code = 2

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, a message for each."""
        return (str(self),)


class ConfigError(VShiftError):
    """One or several problems of a config; `ConfigError(line, …)` holds one line for each.

    Several configs may have the same one, as of `--set`, which counts once.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(str, self.args)))

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DataError(VShiftError):
    """A data set that is missing, empty, unreadable or does not fit the network."""


class RunError(VShiftError):
    """A run folder that cannot be written, or that holds another config's run."""


class Damaged(RunError):
    """A file of a run that does not hold what was once written into it."""


class RunLost(RunError):
    """A run whose folder became unusable: a full disk, a deleted folder. Exit code 1."""

    exit_code = 1


class TrainingFailed(VShiftError):
    """A run that began and could not finish, for instance as its loss became NaN. Exit code 1."""

    exit_code = 1


class Interrupted(VShiftError):
    """A run that was stopped and can be resumed. Exit code 130, or 143 after SIGTERM."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(BaseException):
    """Raised on a stop signal. A BaseException, so that `except Exception` does not catch it."""

    def __init__(self, exit_code: int, at_once: bool = True) -> None:
        super().__init__(f"stopped by a signal, exit code {exit_code}")
        self.exit_code, self.at_once = exit_code, at_once
