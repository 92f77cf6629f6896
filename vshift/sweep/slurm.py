"""A sweep on a Slurm cluster, through submitit: one job array, one task per run.

Progress is read from the run folder, not from the scheduler: that works without accounting, after
the jobs have left squeue's memory, and from any machine that sees the folder.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vshift.config import dump
from vshift.errors import RunError, Stopped, VShiftError
from vshift.runs import discard, lock
from vshift.runs.files import explained, make_folder
from vshift.sweep.logs import excerpt, log_path
from vshift.sweep.plan import Job, check_data
from vshift.sweep.progress import Entry, ProgressTable, counts, entries_of
from vshift.sweep.slurm_job import SlurmTask
from vshift.sweep.status import State, job_status, mark_queued, unmark_queued
from vshift.text import escape_control, pluralize
from vshift.train.progress import Reporter

FOLDER = ".slurm"  # in the runs dir: submitit's scripts, pickles and outputs
WARNING = 120  # seconds before its time limit that a run is warned; Slurm may do it a minute early
LARGEST_ARRAY = 1000  # tasks, if Slurm does not say
GRACE = 60.0  # seconds for a shared file system to show what a job wrote before it ended
TIMEOUT = 30.0  # seconds for squeue and scontrol
SQUEUE_EVERY = 60.0  # seconds
FOLDERS = 100  # looked at per second, at most: a file system is shared with others
NO_LIMIT = 10**6  # time limits that a run may meet; one that gains nothing from them ends itself

# ---- options

_TIME = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,6})(?::([0-9]{1,6}))?(?::([0-9]{1,6}))?")
_IN_LOGS = f"a run's messages are in its log, submitit's in {FOLDER}"
_OWN_OPTIONS = {
    "array": "--jobs sets how many run at a time",
    "output": _IN_LOGS,
    "error": _IN_LOGS,
    "open_mode": _IN_LOGS,
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
class SlurmOptions:
    """The resources of a job, and how the sweep proceeds.

    Args:
        jobs: tasks of an array at a time.
        minutes: a job's time limit; a run that needs longer resumes in the next one.
        gpus, cpus, mem: per run, as `sbatch` takes them.
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


def sbatch_parameters(options: SlurmOptions) -> dict[str, Any]:
    """The parameters that submitit writes into the batch script.

    Raises:
        VShiftError: an option of sbatch that vshift sets itself, or a malformed one.
    """
    more: dict[str, str | bool] = {}
    for text in options.sets:
        key, equals, value = text.partition("=")
        name = key.strip().removeprefix("--").replace("-", "_")
        where = f"--slurm-set {escape_control(text[:80])}"
        if not re.fullmatch("[a-z][a-z_0-9]*", name) or not text.isprintable():
            raise VShiftError(
                f"{where}: write an option of sbatch as key=value, for instance qos=high"
            )
        if name in _OWN_OPTIONS:
            raise VShiftError(f"{where}: {_OWN_OPTIONS[name]}")
        more[name] = value.strip() if equals else True
    parameters = {
        "job_name": "vshift",
        "partition": options.partition,
        "account": options.account,
        "time": options.minutes,
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "mem": options.mem,
        "constraint": options.constraint,
        # The signal reaches every process of the job: a run handles SIGUSR1, submitit's default,
        # USR2, would kill it.
        "setup": ["export SUBMITIT_PREEMPT_SIGNAL=USR1", *options.setup],
        "srun_args": [f"--cpus-per-task={options.cpus}"],  # since 22.05 srun does not inherit it
        "stderr_to_stdout": True,
        "additional_parameters": {
            "requeue": True,
            "signal": f"USR1@{min(WARNING, options.minutes * 30)}",
            **more,
        },
    }
    return {key: value for key, value in parameters.items() if value is not None}


def parse_time(text: str) -> int:
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
        f"--time {escape_control(text[:40])}: write minutes, hours:minutes:seconds or days-hours, "
        "for instance 90, 8:00:00 or 2-12"
    )


# ---- the sweep


def sweep(
    jobs: Sequence[Job], runs_dir: Path, options: SlurmOptions, reporter: Reporter
) -> list[Entry]:
    """Submit what is neither done, nor running, nor queued; return what is known of each job then.

    Raises:
        RunError: folders hold other configs' runs, or another process is submitting.
        DataError: images are missing.
        VShiftError: Slurm or submitit is missing, or sbatch refuses.
    """
    sbatch_parameters(options)  # mistakes in options come first
    runs_dir = runs_dir.absolute()
    with _submitting(runs_dir):
        entries = entries_of(jobs, runs_dir)
        _find_lost(entries, runs_dir, reporter)
        todo = [
            entry
            for entry in entries
            if entry.state not in (State.running, State.queued)
            and (options.fresh or not entry.state.settled)
        ]
        if todo:
            on_cuda = [e.job.label for e in todo if e.job.config.hardware.device == "cuda"]
            others = any(re.match("gpus|gres", text.replace("-", "_")) for text in options.sets)
            if on_cuda and not options.gpus and not others:
                raise VShiftError(
                    f"{on_cuda[0]}: hardware.device is cuda, and the jobs ask for no GPU; add "
                    "--gpus 1"
                )
            check_data(entry.job for entry in todo)
            if options.fresh:
                for entry in todo:
                    discard(runs_dir, entry.job.config.name, entry.job.seed)
            submit(todo, runs_dir, options, reporter)
    for entry in entries:
        entry.by = None if entry.state is State.running else entry.by  # by a job, like all of them
    reporter.say(f"{pluralize(len(entries), 'run')}: {counts(entries)}")
    if options.wait:
        try:
            Waiter(entries, runs_dir, options, reporter).wait()
        except Stopped:
            reporter.say("the Slurm jobs continue; the same command shows their progress")
            raise
    elif any(not entry.is_over for entry in entries):
        reporter.say(
            "the same command shows their progress and submits lost ones again; with --wait it "
            "stays until all are done"
        )
    return entries


@contextmanager
def _submitting(runs_dir: Path) -> Iterator[None]:
    """Lock: one process at a time looks and submits, or a run would be queued twice."""
    folder = runs_dir / FOLDER
    make_folder(folder)
    try:
        lock.lock(folder)
    except RunError as error:
        text = str(error).replace("is training in", "is submitting runs, as it says in")
        raise RunError(text) from None
    try:
        yield
    finally:
        lock.release(folder)


def _find_lost(entries: Sequence[Entry], runs_dir: Path, reporter: Reporter) -> None:
    """Reset runs that are marked as queued by jobs that Slurm no longer knows."""
    queued = [entry for entry in entries if entry.state is State.queued]
    known = known_jobs(entry.by or "" for entry in queued)
    if known is None:
        reporter.say(
            "warning: squeue does not answer: runs that are marked as queued are taken to be so"
        )
        return
    lost = 0
    for entry in queued:
        if entry.by in known:
            continue
        status = job_status(entry.job, runs_dir)  # it may have ended since
        if status.state is State.queued and status.by == entry.by:
            unmark_queued(entry.path)
            status = job_status(entry.job, runs_dir)
            lost += 1
        entry.state, entry.by = status.state, status.by
    if lost:
        reporter.say(f"note: {pluralize(lost, 'run')} queued in Slurm jobs that are gone")


def known_jobs(slurm_jobs: Iterable[str]) -> set[str] | None:
    """The jobs that Slurm lists as pending or running; None if squeue does not answer.

    It asks the controller's memory, so no accounting is needed.
    """
    arrays = sorted({name.partition("_")[0] for name in slurm_jobs})
    if not arrays:
        return set()
    answer = _ask("squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}")
    if answer is None or (answer.returncode != 0 and "Invalid job id" not in answer.stderr):
        return None
    return set(answer.stdout.split())


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """A command's answer; None if there is no such command or no answer in time."""
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def submit(
    entries: Sequence[Entry], runs_dir: Path, options: SlurmOptions, reporter: Reporter
) -> None:
    """Submit job arrays for the entries, and mark their runs as queued.

    Raises:
        VShiftError: submitit or Slurm is missing, or sbatch refuses.
    """
    executor = _executor(runs_dir / FOLDER, options)
    answer = _ask("scontrol", "show", "config")
    text = answer.stdout if answer is not None and answer.returncode == 0 else ""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    size = max(1, int(match[1])) if match else LARGEST_ARRAY
    chunks = [entries[n : n + size] for n in range(0, len(entries), size)]
    # Slurm limits the tasks at a time per array; several arrays share the limit.
    executor.update_parameters(array_parallelism=max(1, options.jobs // len(chunks)))
    texts = {id(e.job.config): dump(e.job.config) for e in entries}  # seeds share a config
    for chunk in chunks:
        lock.pulse(runs_dir / FOLDER)
        tasks = [
            SlurmTask(
                entry.job.config.name, entry.job.seed, texts[id(entry.job.config)],
                str(runs_dir), options.retries,
            )
            for entry in chunk
        ]  # fmt: skip
        names = _submit_array(executor, tasks)
        for entry, name in zip(chunk, names, strict=True):
            mark_queued(entry.path, name)
            entry.state, entry.by = State.queued, name
        reporter.say(
            f"submitted {pluralize(len(chunk), 'run')} as Slurm job {names[0].partition('_')[0]}"
        )


def _executor(folder: Path, options: SlurmOptions) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise VShiftError(
            f"--slurm needs submitit ({error}); install it with: pip install 'vshift[slurm]'"
        ) from None
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-")
    with explained(folder, "make a folder in"):
        # Private to this user: jobs unpickle what is in it.
        own = tempfile.mkdtemp(prefix=stamp, dir=folder)
    try:
        executor = submitit.SlurmExecutor(
            own, max_num_timeout=NO_LIMIT, python=shlex.quote(sys.executable)
        )
    except RuntimeError:
        raise VShiftError(
            "--slurm: there is no srun here; start the sweep on a machine that submits to Slurm, "
            "usually the cluster's login node. Without Slurm, --jobs and --shard share runs out"
        ) from None
    executor.update_parameters(**sbatch_parameters(options))
    return executor


def _submit_array(executor: Any, tasks: Sequence[SlurmTask]) -> list[str]:
    """Submit tasks as one job array; their job ids."""
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


# ---- --wait


class Waiter:
    """Waits until every run is settled; a run that no job is responsible for has failed."""

    def __init__(
        self, entries: list[Entry], runs_dir: Path, options: SlurmOptions, reporter: Reporter
    ) -> None:
        self.entries, self.runs_dir, self.options = entries, runs_dir, options
        self.progress = ProgressTable(entries, options.jobs, reporter)
        self.orphaned: dict[str, float] = {}  # label → since when no job is responsible for it
        self.asked = time.monotonic()

    def wait(self) -> None:
        with self.progress.live():
            while left := [entry for entry in self.entries if not entry.is_over]:
                known = None  # the jobs that Slurm knows, asked now and then
                if time.monotonic() - self.asked >= min(SQUEUE_EVERY, self.options.grace):
                    self.asked = time.monotonic()
                    queued = [entry for entry in left if entry.state is State.queued]
                    known = known_jobs(entry.by or "" for entry in queued)
                for entry in left:
                    self._update(entry, known)
                self.progress.refresh()
                time.sleep(max(1.0, len(left) / FOLDERS))

    def _update(self, entry: Entry, known: set[str] | None) -> None:
        try:
            status = job_status(entry.job, self.runs_dir)
        except RunError as error:
            self.progress.settle(entry, State.failed, str(error))
            return
        now, label, running = time.monotonic(), entry.job.label, status.state is State.running
        slurm_job = status.by if status.state is State.queued else None
        if status.state.settled:
            self.progress.settle(entry, status.state)
        elif running or (slurm_job and (known is None or slurm_job in known)):
            entry.state, entry.by = status.state, slurm_job
            if running or known is not None:
                self.orphaned.pop(label, None)
        elif now - self.orphaned.setdefault(label, now) > self.options.grace:
            unmark_queued(entry.path)
            gone = f"its Slurm job {slurm_job} is gone; the same command submits it again"
            fault = gone if slurm_job else excerpt(log_path(entry.path))
            self.progress.settle(entry, State.failed, fault)
