"""A sweep on a Slurm cluster, through submitit: one job array, one task a run.

How far a run is, its folder says, never the scheduler: that works without accounting, after the
jobs have left squeue's memory, and from any machine that sees the folder. `queue` says how a run is
known to wait.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vshift.config import dump
from vshift.errors import RunError, Stopped, VShiftError, visible
from vshift.progress import Reporter
from vshift.runs import discard, lock
from vshift.runs.files import explained
from vshift.sweep import queue
from vshift.sweep.board import Board, Entry, entries_of
from vshift.sweep.ending import check_data
from vshift.sweep.estimate import Pace
from vshift.sweep.logs import excerpt, log_path
from vshift.sweep.plan import Job
from vshift.sweep.state import State, see, see_all
from vshift.sweep.task import Task

FOLDER = ".slurm"  # in the runs dir: submitit's scripts, pickles and outputs
WARNING = 120  # seconds before its time limit that a run is told; Slurm may say it a minute earlier
LARGEST_ARRAY = 1000  # tasks, where Slurm does not say
FOR_EVER = 10**6  # time limits that a run may meet; one that gains nothing from them ends itself
SQUEUE_EVERY = 60.0  # seconds
GRACE = 60.0  # seconds for a shared file system to show what a job wrote before it ended
_TIME = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,6})(?::([0-9]{1,6}))?(?::([0-9]{1,6}))?")
_OURS = {
    "array": "--jobs sets how many run at a time",
    "output": f"a run's messages are in its log, submitit's in {FOLDER}",
    "error": f"a run's messages are in its log, submitit's in {FOLDER}",
    "open_mode": f"a run's messages are in its log, submitit's in {FOLDER}",
    "signal": "the warning before the time limit is what makes a run write its checkpoint",
    "requeue": "jobs are always put back into the queue",
    "no_requeue": "jobs are always put back into the queue",
    "wrap": "--setup adds lines to the script",
    "time": "give --time",
    "partition": "give --partition",
    "account": "give --account",
    "cpus_per_task": "give --cpus",
    "gpus_per_node": "give --gpus",
    "mem": "give --mem",
    "constraint": "give --constraint",
}


@dataclass(frozen=True)
class Slurm:
    """What every job asks for, and how the sweep goes about it.

    Args:
        jobs: the throttle, tasks of an array at a time.
        minutes: a job's time limit; a run that needs longer goes on in the next one.
        gpus, cpus, mem: a run's, as `sbatch` takes them.
        setup: lines for the script, before the run starts.
        sets: further options of sbatch, `key=value`, or `key` for one without a value.
        wait: stay until all is settled.
    """

    jobs: int = 100
    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    gpus: int | None = None
    cpus: int = 1
    mem: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    retries: int = 1
    fresh: bool = False
    wait: bool = False
    grace: float = GRACE


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
        _stay(entries, runs_dir, how, reporter)
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
    for chunk in chunks:
        tasks = [
            Task(e.job.config.name, e.job.seed, dump(e.job.config), str(runs_dir), how.retries)
            for e in chunk
        ]
        submitted = _hand_over(executor, tasks)
        for entry, name in zip(chunk, submitted, strict=True):
            queue.mark(entry.job, runs_dir, name)
            entry.state, entry.by = State.queued, name
        reporter.say(f"submitted {len(chunk)} runs as Slurm job {submitted[0].partition('_')[0]}")


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


def parameters(how: Slurm) -> dict[str, Any]:
    """What submitit writes into the batch script.

    Raises:
        VShiftError: an option of sbatch that is vshift's own to set, or malformed.
    """
    warning = min(WARNING, how.minutes * 30)
    wanted = {
        "job_name": "vshift",
        "partition": how.partition,
        "account": how.account,
        "time": how.minutes,
        "gpus_per_node": how.gpus,
        "cpus_per_task": how.cpus,
        "mem": how.mem,
        "constraint": how.constraint,
        # It reaches every process of the job: a run knows SIGUSR1, submitit's USR2 would kill it.
        "setup": ["export SUBMITIT_PREEMPT_SIGNAL=USR1", *how.setup],
        "srun_args": [f"--cpus-per-task={how.cpus}"],  # since Slurm 22.05 srun does not inherit it
        "stderr_to_stdout": True,
        "additional_parameters": {
            "requeue": True,
            "signal": f"USR1@{warning}",
            **dict(_sbatch_option(text) for text in how.sets),
        },
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _sbatch_option(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.partition("=")
    name = key.strip().removeprefix("--").replace("-", "_")
    where = f"--slurm-set {visible(text[:80])}"
    if not re.fullmatch("[a-z][a-z_0-9]*", name) or not text.isprintable():
        raise VShiftError(f"{where}: write an option of sbatch as key=value, for instance qos=high")
    if name in _OURS:
        raise VShiftError(f"{where}: {_OURS[name]}")
    return name, value.strip() if equals else True


def array_limit() -> int:
    """Tasks that one job array may have."""
    try:
        answer = subprocess.run(
            ["scontrol", "show", "config"],
            capture_output=True, text=True, timeout=queue.ANSWER, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return LARGEST_ARRAY
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(match[1])) if match else LARGEST_ARRAY


def _hand_over(executor: Any, tasks: Sequence[Task]) -> list[str]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
        text = " ".join(lines) or " ".join(str(error).split())
        raise VShiftError(
            f"Slurm does not take the jobs: {visible(text[:500])}; nothing else was submitted"
        ) from None
    return [str(job.job_id) for job in jobs]


def minutes(text: str) -> int:
    """A time limit as Slurm writes it, `90`, `8:00:00`, `2-12`, in minutes, rounded up.

    Raises:
        VShiftError: it is not one.
    """
    match = _TIME.fullmatch(text.strip())
    if match:
        days, first, second, third = (int(part or 0) for part in match.groups())
        if match[1] is not None:  # days-hours[:minutes[:seconds]]
            seconds = ((days * 24 + first) * 60 + second) * 60 + third
        elif match[4] is not None:  # hours:minutes:seconds
            seconds = (first * 60 + second) * 60 + third
        else:  # minutes[:seconds]
            seconds = first * 60 + second
        if seconds > 0:
            return math.ceil(seconds / 60)
    raise VShiftError(
        f"--time {visible(text[:40])}: write minutes, hours:minutes:seconds or days-hours, for "
        "instance 90, 8:00:00 or 2-12"
    )


def _stay(entries: list[Entry], runs_dir: Path, how: Slurm, reporter: Reporter) -> None:
    """Look at the run folders until every run is settled or lost."""
    watch = _Watch(entries, runs_dir, how, reporter)
    try:
        watch.until_over()
    except Stopped:
        reporter.say("the Slurm jobs go on; the same command shows where they are")
        raise


class _Watch:
    """Runs on their way through the cluster, seen through their folders."""

    def __init__(
        self, entries: list[Entry], runs_dir: Path, how: Slurm, reporter: Reporter
    ) -> None:
        self.entries, self.runs_dir, self.how = entries, runs_dir, how
        self.pace = Pace()
        self.pace.learn_from([e.job for e in entries if e.state is State.done], runs_dir)
        self.board = Board(entries, self.pace, how.jobs, reporter)
        self.unseen: dict[str, float] = {}  # label → since when nobody is responsible for it
        self.asked = time.monotonic()

    def until_over(self) -> None:
        with self.board:
            while left := [entry for entry in self.entries if not entry.is_over]:
                there = self._squeue(left)
                for entry in left:
                    self._look(entry, there)
                self.board.refresh()
                # 100 folders a second at most: a file system is shared with others.
                time.sleep(max(1.0, len(left) / 100))

    def _squeue(self, left: Sequence[Entry]) -> set[str] | None:
        """Now and then what Slurm knows of the jobs; None says nothing about them."""
        if time.monotonic() - self.asked < min(SQUEUE_EVERY, self.how.grace):
            return None
        self.asked = time.monotonic()
        return queue.still_there(entry.by or "" for entry in left if entry.state is State.queued)

    def _look(self, entry: Entry, there: set[str] | None) -> None:
        try:
            seen = see(entry.job, self.runs_dir)
        except RunError as error:
            self._over(entry, State.failed, str(error))
            return
        label, asked = entry.job.label, seen.by if seen.state is State.queued else None
        if seen.state.settled:
            self.pace.learn_from([entry.job], self.runs_dir)
            self._over(entry, seen.state)
        elif seen.state is State.running or (asked and (there is None or asked in there)):
            entry.state, entry.by = seen.state, asked
            if seen.state is State.running or there is not None:
                self.unseen.pop(label, None)
        elif time.monotonic() - self.unseen.setdefault(label, time.monotonic()) > self.how.grace:
            queue.unmark(entry.path)
            gone = f"its Slurm job {asked} is gone; the same command submits it again"
            self._over(entry, State.failed, gone if asked else excerpt(log_path(entry.path)))

    def _over(self, entry: Entry, state: State, fault: str = "") -> None:
        entry.state, entry.by, entry.fault = state, None, fault
        self.board.over(entry)
