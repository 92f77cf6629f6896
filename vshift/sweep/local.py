"""A sweep on this machine: every run in a process of its own, a limited number at a time."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vshift.config import dump
from vshift.errors import Interrupted, Stopped, VShiftError
from vshift.runs import discard
from vshift.runs.files import explained, make_folder
from vshift.sweep import slots
from vshift.sweep.logs import excerpt, log_path, open_log, trim
from vshift.sweep.plan import Job, check_data, train_command
from vshift.sweep.process_group import ProcessGroup
from vshift.sweep.progress import Entry, ProgressTable, counts, entries_of
from vshift.sweep.slots import Slot
from vshift.sweep.status import Outcome, State, job_status, outcome
from vshift.text import pluralize
from vshift.train.progress import Reporter

TICK = 0.1  # seconds between two looks at the processes
LOOK = 2.0  # seconds between two looks at other processes' runs, and at the logs' sizes
PATIENCE = 15.0  # seconds, when all else is done, for other processes that are about to stop

Command = Callable[[Path, int, Path], list[str]]  # of a config file, a seed and a runs dir


@dataclass(frozen=True)
class LocalOptions:
    """How a sweep runs on one machine.

    Args:
        jobs: runs at a time; None: one per slot on a GPU, or one without GPUs.
        retries: of a run that failed, unless it diverged or its config is to blame.
        fresh: replace existing runs.
        wait: also for runs that other processes train.
        fail_fast: at the first run that fails, without a retry, stop the others as a signal would.
    """

    jobs: int | None = None
    jobs_per_gpu: int = 1
    retries: int = 1
    fresh: bool = False
    wait: bool = False
    fail_fast: bool = False
    patience: float = PATIENCE


def sweep(
    jobs: Sequence[Job],
    runs_dir: Path,
    options: LocalOptions,
    reporter: Reporter,
    command: Command = train_command,
) -> list[Entry]:
    """Run what is not done, and return what became of each job.

    Runs that another live process trains are skipped. Each attempt's output goes to
    `<name>/seed-<n>.log`. Configs are frozen at the start: editing a file during the sweep changes
    nothing.

    Raises:
        RunError: folders hold other configs' runs, or the runs dir cannot be made.
        DataError: images are missing.
        Interrupted: a signal asked to stop, and every running run has stopped.
    """
    entries = entries_of(jobs, runs_dir)
    for entry in entries:
        if options.fresh and entry.state is not State.running:
            entry.state, entry.by = State.new, None
    reporter.say(f"{pluralize(len(jobs), 'run')}: {counts(entries)}")
    for entry in entries:
        if entry.state in (State.failed, State.queued):  # whatever it was before, it waits here
            entry.state, entry.by = State.new, None
    todo = [entry.job for entry in entries if not entry.state.settled]
    check_data(todo)
    if todo:
        make_folder(runs_dir)
    with tempfile.TemporaryDirectory(prefix="vshift-") as frozen:
        _Pool(entries, runs_dir, options, reporter, command, Path(frozen)).run()
    return entries


def local_slots(jobs: Sequence[Job], options: LocalOptions) -> tuple[list[Slot], list[str]]:
    """The slots of this machine that a sweep would use, and warnings about them."""
    on_gpu = any(job.config.hardware.device != "cpu" for job in jobs)
    gpus = slots.visible_gpus(os.environ) if on_gpu else []
    cores = slots.available_cores()
    warnings: list[str] = []
    allocated = slots.allocate_slots(options.jobs, options.jobs_per_gpu, gpus, cores, warnings)
    threads = max((job.config.hardware.threads or 1 for job in jobs), default=1)
    count = len(allocated)
    if threads > 1 and threads * count > cores and count > 1:
        warnings.append(
            f"hardware.threads: {threads} in {count} runs at a time on {cores} processor cores: "
            "they slow each other down; lower one of the two"
        )
    return allocated, warnings


@dataclass(eq=False)
class _Running:
    entry: Entry
    slot: Slot
    process: subprocess.Popen[bytes]
    log: IO[bytes]


class _Pool:
    """The slots of this machine and the runs in them. One thread: it looks, starts and sleeps."""

    def __init__(
        self,
        entries: list[Entry],
        runs_dir: Path,
        options: LocalOptions,
        reporter: Reporter,
        command: Command,
        frozen: Path,
    ) -> None:
        self.runs_dir, self.options, self.reporter = runs_dir, options, reporter
        self.command, self.frozen = command, frozen
        self.todo = deque(e for e in entries if not e.state.settled)
        self.held: list[Entry] = []  # by other processes
        self.running: list[_Running] = []
        self.processes = ProcessGroup()
        self.failed_fast = False
        self.free, warnings = local_slots([entry.job for entry in self.todo], options)
        for text in warnings:
            reporter.say(f"warning: {text}")
        self.progress = ProgressTable(entries, len(self.free), reporter)
        self.looked = 0.0
        self.idle_since = time.monotonic()

    def run(self) -> None:
        def tell() -> None:
            self.reporter.say("stopping: every run writes its checkpoint")

        try:
            with self.processes.forwarding_signals(tell), self.progress.live():
                while self._is_busy():
                    self._reap()
                    self._look()
                    self._fill()
                    self.progress.refresh()
                    time.sleep(TICK)
        except Stopped:
            raise
        except BaseException:
            self.processes.terminate()
            raise
        finally:
            for one in self.running:
                one.log.close()
        left, total = len(self.todo) + len(self.held), len(self.progress.entries)
        if self.processes.stop.requested and left:
            raise Interrupted(
                f"interrupted with {left} of {total} runs to go; the same command"
                f"{' without --fresh' if self.options.fresh else ''} resumes them",
                self.processes.stop.exit_code,
            )
        if self.failed_fast and left:
            self.reporter.say(
                f"stopped at the first failure, with {left} of {total} runs to go; the same "
                "command resumes them"
            )
            return
        for entry in self.held:
            self.reporter.say(f"note: {entry.job.label}: skipped, {entry.by} is training it")

    @property
    def _is_stopping(self) -> bool:
        return self.failed_fast or self.processes.stop.requested

    def _is_busy(self) -> bool:
        if self.running:
            self.idle_since = time.monotonic()
            return True
        if self._is_stopping:
            return False
        is_patient = time.monotonic() - self.idle_since < self.options.patience
        return bool(self.todo or (self.held and (self.options.wait or is_patient)))

    def _look(self) -> None:
        """Now and then, trim logs and try again the runs that other processes held."""
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        for one in self.running:
            trim(log_path(one.entry.path))
        if self.free:
            self.todo += self.held
            self.held = []

    def _fill(self) -> None:
        """Start runs while there are free slots; skip those that others train or have trained."""
        while self.todo and self.free and not self._is_stopping:
            entry = self.todo.popleft()
            replace = self.options.fresh and entry.attempts == 0
            try:
                status = job_status(entry.job, self.runs_dir)
                if status.state is State.running:
                    entry.state, entry.by = State.running, status.by
                    self.held.append(entry)
                elif status.state.settled and not replace:
                    self._settle(entry, status.state)
                else:
                    if replace:
                        discard(self.runs_dir, entry.job.config.name, entry.job.seed)
                    self._start(entry)
            except (VShiftError, OSError) as error:
                self._settle(entry, State.failed, str(error))

    def _start(self, entry: Entry) -> None:
        job, slot = entry.job, self.free.pop(0)
        config = self.frozen / f"{job.config.name}.seed-{job.seed}.yaml"
        with ExitStack() as undo:
            undo.callback(self.free.insert, 0, slot)
            with explained(config, "write"):
                config.write_text(dump(job.config), encoding="utf-8")
            entry.attempts += 1
            gpu = f", GPU {slot.gpu}" if slot.gpu is not None else ""
            title = f"attempt {entry.attempts} at {job.label}{gpu}"
            log = undo.enter_context(open_log(log_path(entry.path), title))
            words = self.command(config, job.seed, self.runs_dir)
            environment = slot.environment(os.environ)
            process = self.processes.start(words, environment, stdout=log, stderr=log)
            if process is None:
                self.todo.appendleft(entry)
                return
            undo.pop_all()
        entry.state, entry.by, entry.started = State.running, None, time.monotonic()
        self.running.append(_Running(entry, slot, process, log))

    def _reap(self) -> None:
        """Free the slots of processes that have ended, and settle or retry their runs."""
        retries = 0 if self.options.fail_fast else self.options.retries
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self.free.insert(0, one.slot)
            one.log.close()
            entry, code, log = one.entry, one.process.returncode, log_path(one.entry.path)
            match outcome(entry.job, self.runs_dir, code, self._is_stopping):
                case (Outcome.done | Outcome.diverged) as end:
                    self._settle(entry, State(end))
                case (Outcome.stopped | Outcome.elsewhere) as end:
                    entry.state = State.resume
                    entry.attempts -= 1
                    (self.held if end is Outcome.elsewhere else self.todo).append(entry)
                case Outcome.failed if entry.attempts <= retries:
                    entry.state = State.new
                    reason = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
                    reason += ", perhaps for its memory" if code == -9 else ""
                    label = entry.job.label
                    self.reporter.say(
                        f"warning: {label}: failed ({reason}), it will be retried\n{excerpt(log)}"
                    )
                    self.todo.append(entry)
                case _:
                    self._settle(entry, State.failed, excerpt(log))

    def _settle(self, entry: Entry, state: State, fault: str = "") -> None:
        self.progress.settle(entry, state, fault)
        if self.options.fail_fast and state is not State.done and not self.failed_fast:
            self.failed_fast = True
            self.processes.terminate()
