"""How far a run is, read from its folder alone: no scheduler and no other process is asked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vshift.config import config_hash
from vshift.errors import Damaged, RunError
from vshift.runs import RunFolder, look
from vshift.runs.files import LONGEST, Row, from_json
from vshift.runs.folder import CONFIG, METRICS, RUN
from vshift.runs.holder import holder
from vshift.sweep import queue
from vshift.sweep.plan import Job

MOST_SHOWN = 10


class State(StrEnum):
    """Of a run, as a sweep sees it."""

    new = "new"
    resume = "resume"  # it has a checkpoint, and nobody works on it
    failed = "failed"  # it ended so, or its files cannot be read; it is tried again
    running = "running"
    queued = "queued"  # a Slurm job is to run it, or to go on with it
    done = "done"
    diverged = "diverged"

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self in (State.done, State.diverged)


@dataclass(frozen=True)
class Seen:
    """A run's state; `by` is the process that holds it, or the Slurm job that it waits for."""

    state: State
    by: str | None = None


def see(job: Job, runs_dir: Path) -> Seen:
    """A run's state.

    Raises:
        RunError: the folder holds another config's run.
    """
    folder = RunFolder(job.path(runs_dir))
    try:
        ended = _ended(folder, job)
    except Damaged:
        ended = State.failed
    if ended.settled:
        return Seen(ended)
    owner = holder(folder.path)
    if owner:
        return Seen(State.running, owner)
    waits = queue.queued(job, runs_dir)
    return Seen(State.queued, waits) if waits else Seen(ended)


def _ended(folder: RunFolder, job: Job) -> State:
    if not folder.has(RUN) and not folder.has(CONFIG):
        return State.new
    run = folder.run
    if run.get("config_hash") != config_hash(job.config):
        look(folder, job.config)  # names what differs
    if run.get("status") == "done" and folder.has_summary:
        return State.done
    if run.get("status") == "diverged":
        return State.diverged
    if run.get("status") == "failed":
        return State.failed
    return State.resume if folder.checkpoints() else State.new


def see_all(jobs: list[Job], runs_dir: Path) -> list[Seen]:
    """Every run's state.

    Raises:
        RunError: folders hold other configs' runs; the first few of them.
    """
    seen: list[Seen] = []
    problems: list[str] = []
    for job in jobs:
        try:
            seen.append(see(job, runs_dir))
        except RunError as error:
            problems.append(str(error))
    if len(problems) > MOST_SHOWN:
        problems[MOST_SHOWN:] = [f"and {len(problems) - MOST_SHOWN} more runs of other configs"]
    if problems:
        raise RunError("\n".join(problems))
    return seen


def last_epoch(path: Path) -> Row:
    """The newest whole row of a run's metrics; empty where there is none yet.

    Only the file's end is read: a sweep looks at hundreds of runs every few seconds.
    """
    try:
        with open(path / METRICS, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - min(LONGEST, 16_384)))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline may be torn
    except OSError:
        return {}
    try:
        return from_json(lines[-1]) if lines else {}
    except ValueError:
        return {}
