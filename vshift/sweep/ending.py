"""Before and behind a sweep: is the data there, and what to say and return at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vshift.config.schema import Cifar
from vshift.data import describe, fetch
from vshift.errors import DataError, TrainingFailed
from vshift.sweep.board import Entry
from vshift.sweep.logs import log_path
from vshift.sweep.plan import Job
from vshift.sweep.state import State

MOST_NAMED = 20


def check_data(jobs: Iterable[Job]) -> None:
    """Are the images there that the jobs need? CIFAR is downloaded, once instead of once a run.

    Raises:
        DataError: one that is missing; it would stop every run with the same words.
    """
    sections = {job.config.data.model_dump_json(): job.config.data for job in jobs}
    problems: dict[str, None] = {}
    for data in sections.values():
        try:
            describe(data)
            if isinstance(data, Cifar):
                fetch(data.name, data.root)
        except DataError as error:
            problems[str(error)] = None
    if problems:
        raise DataError("\n".join(problems))


def paths_of(entries: Sequence[Entry]) -> list[Path]:
    """The run folders that a comparison can be made of."""
    return [entry.path for entry in entries if entry.state is State.done]


def raise_if_failed(entries: Sequence[Entry]) -> None:
    """Name the runs that failed, and where their messages are.

    Raises:
        TrainingFailed: if there are any; a run that diverged is one of them.
    """
    failed = [e for e in entries if e.state in (State.failed, State.diverged)]
    if not failed:
        return
    lines = [f"  {entry.job.label}: {_where(entry)}" for entry in failed]
    if len(lines) > MOST_NAMED:
        lines[MOST_NAMED:] = [f"  and {len(lines) - MOST_NAMED} more"]
    raise TrainingFailed("\n".join([f"{len(failed)} of {len(entries)} runs failed:", *lines]))


def _where(entry: Entry) -> str:
    log = log_path(entry.path)
    why = f"{entry.word}, " if entry.state is State.diverged else ""
    return why + (f"see {log}" if log.exists() else f"see {entry.path}")
