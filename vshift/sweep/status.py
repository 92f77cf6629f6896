"""How far a run is, from its folder and the marker beside it; no other process is asked.

The marker `<runs-dir>/<name>/seed-<n>.queued.json` names the Slurm job that is responsible for a
run. It is written when the job is submitted, and removed by the job when the run is done or has
failed for good; it stays while a job that was stopped waits to be requeued. While it exists the run
counts as queued, without asking the scheduler. It outlives its job in one case: the job ended
without a chance to clean up (scancel, a lost node), which only squeue can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vshift.config import config_hash
from vshift.errors import Damaged, RunError
from vshift.runs import RunFolder, files, next_action, now
from vshift.runs.files import LONGEST, Row, from_json
from vshift.runs.folder import CONFIG, METRICS, RUN
from vshift.runs.lock import holder
from vshift.sweep.plan import Job
from vshift.text import escape_control, first_lines

MOST_SHOWN = 10


class State(StrEnum):
    """The state of a run, as a sweep sees it."""

    new = "new"
    resume = "resume"  # it has a checkpoint, and no process trains it
    failed = "failed"  # it ended so, or its files cannot be read; it is retried
    running = "running"
    queued = "queued"  # a Slurm job is to start or resume it
    done = "done"
    diverged = "diverged"

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self in (State.done, State.diverged)


@dataclass(frozen=True)
class JobStatus:
    """A run's state; `by` is the process that trains it, or the Slurm job that it waits for."""

    state: State
    by: str | None = None


def job_status(job: Job, runs_dir: Path) -> JobStatus:
    """The status of a run.

    Raises:
        RunError: the folder holds another config's run or is no run, or what is to be trained lies
            behind a link.
    """
    folder = RunFolder(job.path(runs_dir))
    try:
        if not folder.has(RUN) and not folder.has(CONFIG):
            folder.refuse_other_files()
            state = State.new
        else:
            run = folder.run
            if run.get("config_hash") != config_hash(job.config):
                next_action(folder, job.config)  # raises, naming the keys that differ
            match run.get("status"):
                case "done" if folder.has_summary:
                    state = State.done
                case "diverged" | "failed" as status:
                    state = State(status)
                case _:
                    state = State.resume if folder.checkpoints() else State.new
    except Damaged:
        state = State.failed
    if state.settled:
        return JobStatus(state)
    files.refuse_links(runs_dir, folder.path)
    if owner := holder(folder.path):
        return JobStatus(State.running, owner)
    if slurm_job := slurm_job_of(folder.path):
        return JobStatus(State.queued, slurm_job)
    return JobStatus(state)


def all_statuses(jobs: Sequence[Job], runs_dir: Path) -> list[JobStatus]:
    """The status of every run.

    Raises:
        RunError: folders hold other configs' runs; it names the first few of them.
    """
    statuses: list[JobStatus] = []
    problems: list[str] = []
    for job in jobs:
        try:
            statuses.append(job_status(job, runs_dir))
        except RunError as error:
            problems.append(str(error))
    if problems:
        rest = "and {:,} more runs of other configs"
        raise RunError("\n".join(first_lines(problems, MOST_SHOWN, rest)))
    return statuses


def last_epoch(path: Path) -> Row:
    """The newest complete row of a run's metrics; empty if there is none yet.

    Only the file's end is read: a sweep looks at hundreds of runs every few seconds.
    """
    try:
        with open(path / METRICS, "rb", opener=files.not_through_links) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - min(LONGEST, 16_384)))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline may be torn
        return from_json(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


# ---- the marker of a queued run


def marker(path: Path) -> Path:
    """The marker beside a run folder."""
    return path.with_name(f"{path.name}.queued.json")


def mark_queued(path: Path, slurm_job: str) -> None:
    """Make a Slurm job responsible for the run in a folder; RunError if it cannot be written."""
    files.make_folder(path.parent)
    files.write_json(marker(path), {"job": slurm_job, "submitted": now()})


def unmark_queued(path: Path) -> None:
    """Release the run in a folder from its Slurm job."""
    with suppress(OSError):
        marker(path).unlink(missing_ok=True)


def slurm_job_of(path: Path) -> str | None:
    """The Slurm job responsible for the run in a folder, according to the marker."""
    try:
        name = (files.read_json(marker(path)) or {}).get("job")
    except RunError:
        return None  # unreadable: the run may be submitted again, which does no harm
    return escape_control(name[:40]) if isinstance(name, str) and name else None


# ---- how an attempt ended


class Outcome(StrEnum):
    """How one attempt at a run ended."""

    done = "done"
    diverged = "diverged"  # another attempt would give the same
    refused = "refused"  # a mistake in the config, the data or the folder: the same again
    elsewhere = "elsewhere"  # another process trains the run
    stopped = "stopped"  # as requested
    failed = "failed"  # another attempt may succeed: memory, a disk, a machine


def outcome(job: Job, runs_dir: Path, code: int, stop_requested: bool) -> Outcome:
    """The outcome of a run from its exit code and its folder."""
    try:
        state = job_status(job, runs_dir).state
    except RunError:
        return Outcome.refused
    if state is State.done and code == 0:
        return Outcome.done
    if state is State.diverged:
        return Outcome.diverged
    if stop_requested and code not in (0, 2):  # a signal in an import is any error at all
        return Outcome.stopped
    if code == 2:
        return Outcome.elsewhere if holder(job.path(runs_dir)) else Outcome.refused
    return Outcome.failed
