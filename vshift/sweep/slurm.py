"""A sweep on a Slurm cluster, through submitit: one job array, one task a run.

How far a run is, its folder says, never the scheduler: that works without accounting, after the
jobs have left squeue's memory, and from any machine that sees the folder. `queue` says how a run is
known to wait.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vshift.config import dump
from vshift.errors import RunError, VShiftError
from vshift.runs import discard, lock
from vshift.runs.files import explained
from vshift.sweep import queue
from vshift.sweep.board import Board, Entry, entries_of
from vshift.sweep.ending import check_data
from vshift.sweep.estimate import Pace
from vshift.sweep.plan import Job
from vshift.sweep.sbatch import FOLDER, Slurm, array_limit, parameters
from vshift.sweep.state import State, see, see_all
from vshift.sweep.stay import stay
from vshift.sweep.task import Task
from vshift.text import escape_control
from vshift.train.progress import Reporter

FOR_EVER = 10**6  # time limits that a run may meet; one that gains nothing from them ends itself


def sweep(jobs: Sequence[Job], runs_dir: Path, how: Slurm, reporter: Reporter) -> list[Entry]:
    """Submit what is neither done, nor running, nor queued; what is known of each job then.

    Raises:
        RunError: folders hold other configs' runs, or another process is submitting.
        DataError: images are missing.
        VShiftError: Slurm or submitit is missing, or sbatch refuses.
    """
    parameters(how)  # mistakes in options come first
    runs_dir = runs_dir.absolute()
    with _submitting(runs_dir):
        entries = entries_of(jobs, see_all(list(jobs), runs_dir), runs_dir)
        _find_lost(entries, runs_dir, reporter)
        todo = [entry for entry in entries if _is_to_do(entry, how.fresh)]
        if todo:
            _refuse_without_gpus(todo, how)
            check_data(entry.job for entry in todo)
            if how.fresh:
                for entry in todo:
                    discard(runs_dir, entry.job.config.name, entry.job.seed)
            submit(todo, runs_dir, how, reporter)
    for entry in entries:
        entry.by = None if entry.state is State.running else entry.by  # in a job, as all of them
    board = Board(entries, Pace(), how.jobs, reporter)
    reporter.say(f"{len(entries)} runs: {board.counts()}")
    if how.wait:
        stay(entries, runs_dir, how, reporter)
    elif any(not entry.is_over for entry in entries):
        reporter.say(
            "the same command shows where they are and submits again what is lost; with --wait it "
            "stays until all are done"
        )
    return entries


@contextmanager
def _submitting(runs_dir: Path) -> Iterator[None]:
    """One process at a time looks and submits, or a run would be queued twice."""
    folder = runs_dir / FOLDER
    with explained(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.lock(folder)
    except RunError as error:
        text = str(error).replace("is training in", "is submitting runs, as it says in")
        raise RunError(text) from None
    try:
        yield
    finally:
        lock.release(folder)


def _is_to_do(entry: Entry, fresh: bool) -> bool:
    if entry.state in (State.running, State.queued):
        return False
    return fresh or not entry.state.settled


def _find_lost(entries: Sequence[Entry], runs_dir: Path, reporter: Reporter) -> None:
    """Runs that are marked as queued by jobs that Slurm does not know any more are to do again."""
    queued = [entry for entry in entries if entry.state is State.queued]
    there = queue.still_there(entry.by or "" for entry in queued)
    if there is None:
        reporter.say("squeue does not answer: runs that are marked as queued are taken to be so")
        return
    lost = 0
    for entry in queued:
        if entry.by in there:
            continue
        again = see(entry.job, runs_dir)  # it may have ended since
        if again.state is State.queued and again.by == entry.by:
            queue.unmark(entry.path)
            again = see(entry.job, runs_dir)
            lost += 1
        entry.state, entry.by = again.state, again.by
    if lost:
        reporter.say(f"{lost} runs were queued in Slurm jobs that are gone")


def _refuse_without_gpus(entries: Sequence[Entry], how: Slurm) -> None:
    wants = [e.job.label for e in entries if e.job.config.hardware.device == "cuda"]
    others = any(re.match("gpus|gres", text.replace("-", "_")) for text in how.sets)
    if wants and not how.gpus and not others:
        raise VShiftError(
            f"{wants[0]}: hardware.device is cuda, and the jobs ask for no GPU; add --gpus 1"
        )


def submit(entries: Sequence[Entry], runs_dir: Path, how: Slurm, reporter: Reporter) -> None:
    """Job arrays for the entries, whose runs are then marked as queued.

    Raises:
        VShiftError: submitit or Slurm is missing, or sbatch refuses.
    """
    executor = _executor(runs_dir / FOLDER, how)
    size = array_limit()
    chunks = [entries[n : n + size] for n in range(0, len(entries), size)]
    # A throttle counts within one array; several share it.
    executor.update_parameters(array_parallelism=max(1, how.jobs // len(chunks)))
    texts = {id(e.job.config): dump(e.job.config) for e in entries}  # seeds share a config
    for chunk in chunks:
        lock.pulse(runs_dir / FOLDER)
        tasks = [_task(entry.job, texts, runs_dir, how) for entry in chunk]
        submitted = _hand_over(executor, tasks)
        for entry, name in zip(chunk, submitted, strict=True):
            queue.mark(entry.job, runs_dir, name)
            entry.state, entry.by = State.queued, name
        reporter.say(f"submitted {len(chunk)} runs as Slurm job {submitted[0].partition('_')[0]}")


def _task(job: Job, texts: dict[int, str], runs_dir: Path, how: Slurm) -> Task:
    return Task(job.config.name, job.seed, texts[id(job.config)], str(runs_dir), how.retries)


def _executor(folder: Path, how: Slurm) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise VShiftError(
            f"--slurm needs submitit ({error}); install it with: pip install 'vshift[slurm]'"
        ) from None
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-")
    with explained(folder, "make a folder in"):
        own = tempfile.mkdtemp(
            prefix=stamp, dir=folder
        )  # nobody else's: jobs unpickle what is there
    try:
        executor = submitit.SlurmExecutor(
            own, max_num_timeout=FOR_EVER, python=shlex.quote(sys.executable)
        )
    except RuntimeError:
        raise VShiftError(
            "--slurm: there is no srun here; start the sweep on a machine that submits to Slurm, "
            "usually the cluster's login node. Without Slurm, --jobs and --shard share runs out"
        ) from None
    executor.update_parameters(**parameters(how))
    return executor


def _hand_over(executor: Any, tasks: Sequence[Task]) -> list[str]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
        text = " ".join(lines) or " ".join(str(error).split())
        raise VShiftError(
            f"Slurm does not take the jobs: {escape_control(text[:500])}; nothing else was "
            "submitted"
        ) from None
    return [str(job.job_id) for job in jobs]
