"""A sweep on this machine: every run in a process of its own, so many at a time."""

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
from vshift.runs.files import explained
from vshift.sweep import places
from vshift.sweep.attempt import Outcome, outcome, train_command
from vshift.sweep.board import Board, Entry, entries_of
from vshift.sweep.children import Children
from vshift.sweep.ending import check_data
from vshift.sweep.estimate import Pace
from vshift.sweep.logs import excerpt, log_path, open_log, trim
from vshift.sweep.places import Place
from vshift.sweep.plan import Job
from vshift.sweep.state import Seen, State, see, see_all
from vshift.train.progress import Reporter

TICK = 0.1  # seconds between two looks at the processes
LOOK = 2.0  # seconds between two looks at runs that other processes train, and at the logs' sizes
PATIENCE = 15.0  # seconds for other processes that are about to stop, after all else is done

Command = Callable[[Path, int, Path], list[str]]  # of a config file, a seed and a runs dir


@dataclass(frozen=True)
class Local:
    """How a sweep runs on one machine.

    Args:
        jobs: runs at a time; None: one for each place on a GPU, or one without GPUs.
        retries: of a run that failed, unless it diverged or its config is to blame.
        fresh: replace runs that are there.
        wait: also for runs that other processes train.
    """

    jobs: int | None = None
    jobs_per_gpu: int = 1
    retries: int = 1
    fresh: bool = False
    wait: bool = False
    patience: float = PATIENCE


def sweep(
    jobs: Sequence[Job],
    runs_dir: Path,
    how: Local,
    reporter: Reporter,
    command: Command = train_command,
) -> list[Entry]:
    """Run what is not done; what became of each job.

    Runs that another live process trains are left to it. Each attempt's messages go to
    `<name>/seed-<n>.log`. Configs are frozen at the start: a file that is edited while the sweep
    goes on changes nothing.

    Raises:
        RunError: folders hold other configs' runs, or the runs dir cannot be made.
        DataError: images are missing.
        Interrupted: a signal asked to stop, and every run that was going on has stopped.
    """
    entries = entries_of(jobs, see_all(list(jobs), runs_dir), runs_dir)
    done = 0 if how.fresh else sum(entry.state is State.done for entry in entries)
    reporter.say(f"{len(jobs)} runs, {done} of them done")
    for entry in entries:
        if entry.state is not State.running and (how.fresh or not entry.state.settled):
            entry.state, entry.by = State.new, None  # here it waits, whatever it was before
    todo = [entry.job for entry in entries if not entry.state.settled]
    check_data(todo)
    if todo:
        with explained(runs_dir, "make the folder"):
            runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vshift-") as frozen:
        pool = _Pool(entries, runs_dir, how, reporter, command, Path(frozen))
        pool.run()
    return entries


def room(jobs: Sequence[Job], how: Local) -> tuple[list[Place], list[str]]:
    """The places of this machine that a sweep would use, and what the user should know of them."""
    on_gpu = any(job.config.hardware.device != "cpu" for job in jobs)
    names = places.gpus(os.environ) if on_gpu else []
    said: list[str] = []
    cores = places.cores()
    found = places.places(how.jobs, how.jobs_per_gpu, names, cores, said)
    asked = max((job.config.hardware.threads or 1 for job in jobs), default=1)
    if asked > 1 and asked * len(found) > cores and len(found) > 1:
        said.append(
            f"hardware.threads: {asked} in {len(found)} runs at a time on {cores} processor cores: "
            "they disturb each other; lower one of the two"
        )
    return found, said


@dataclass(eq=False)
class _Running:
    entry: Entry
    place: Place
    process: subprocess.Popen[bytes]
    log: IO[bytes]


class _Pool:
    """The places of this machine and the runs in them. One thread: it looks, starts, and sleeps."""

    def __init__(
        self,
        entries: list[Entry],
        runs_dir: Path,
        how: Local,
        reporter: Reporter,
        command: Command,
        frozen: Path,
    ) -> None:
        self.runs_dir, self.how, self.reporter = runs_dir, how, reporter
        self.command, self.frozen = command, frozen
        self.total = len(entries)
        self.todo = deque(e for e in entries if not e.state.settled)
        self.held: list[Entry] = []
        self.running: list[_Running] = []
        self.children = Children()
        self.free, said = room([entry.job for entry in self.todo], how)
        for text in said:
            reporter.say(text)
        self.pace = Pace()
        self.pace.learn_from([e.job for e in entries if e.state is State.done], runs_dir)
        self.board = Board(entries, self.pace, len(self.free), reporter)
        self.looked = 0.0
        self.idle_since = time.monotonic()

    def run(self) -> None:
        message = "" if self.reporter.quiet else "stopping: every run writes its checkpoint"
        try:
            with self.children.listening(message), self.board:
                while self._goes_on():
                    self._reap()
                    self._look()
                    self._fill()
                    self.board.refresh()
                    time.sleep(TICK)
        except Stopped:
            raise
        except BaseException:
            self.children.end_all()
            raise
        finally:
            for one in self.running:
                one.log.close()
        left = len(self.todo) + len(self.held)
        if self.children.stop.asked and left:
            raise Interrupted(
                f"interrupted with {left} of {self.total} runs to go; the same command goes on "
                "with them" + (", without --fresh" if self.how.fresh else ""),
                self.children.stop.exit_code,
            )
        for entry in self.held:
            self.reporter.say(f"{entry.job.label}: left to {entry.by}, which trains it")

    def _goes_on(self) -> bool:
        if self.running:
            self.idle_since = time.monotonic()
            return True
        if self.children.stop.asked:
            return False
        idle = time.monotonic() - self.idle_since
        return bool(self.todo or (self.held and (self.how.wait or idle < self.how.patience)))

    def _look(self) -> None:
        """Now and then: are runs free again that others held, and has a log grown too long?"""
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        for one in self.running:
            trim(log_path(one.entry.path))
        if self.free:
            self.todo += self.held
            self.held = []

    def _fill(self) -> None:
        while self.todo and self.free and not self.children.stop.asked:
            entry = self.todo.popleft()
            try:
                self._begin(entry, see(entry.job, self.runs_dir))
            except (VShiftError, OSError) as error:
                self._fail(entry, str(error))

    def _begin(self, entry: Entry, seen: Seen) -> None:
        replace = self.how.fresh and entry.attempts == 0
        if seen.state is State.running:
            entry.state, entry.by = State.running, seen.by
            self.held.append(entry)
            return
        if seen.state.settled and not replace:  # by somebody else, since the sweep began
            self._settle(entry, seen.state)
            return
        if replace:
            discard(self.runs_dir, entry.job.config.name, entry.job.seed)
        self._start(entry)

    def _start(self, entry: Entry) -> None:
        job, place = entry.job, self.free.pop(0)
        config = self.frozen / f"{job.config.name}.seed-{job.seed}.yaml"
        with ExitStack() as undo:
            undo.callback(self.free.insert, 0, place)
            with explained(config, "write"):
                config.write_text(dump(job.config), encoding="utf-8")
            entry.attempts += 1
            where = f", GPU {place.gpu}" if place.gpu is not None else ""
            title = f"attempt {entry.attempts} at {job.label}{where}"
            log = undo.enter_context(open_log(log_path(entry.path), title))
            words = self.command(config, job.seed, self.runs_dir)
            process = self.children.start(
                words, place.environment(os.environ), stdout=log, stderr=log
            )
            if process is None:
                self.todo.appendleft(entry)
                return
            undo.pop_all()
        entry.state, entry.by, entry.began = State.running, None, time.monotonic()
        self.running.append(_Running(entry, place, process, log))

    def _reap(self) -> None:
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self.free.insert(0, one.place)
            one.log.close()
            self._judge(one.entry, one.process.returncode)

    def _judge(self, entry: Entry, code: int) -> None:
        found = outcome(entry.job, self.runs_dir, code, self.children.stop.asked)
        if found is Outcome.done:
            self.pace.learn_from([entry.job], self.runs_dir)
            self._settle(entry, State.done)
        elif found is Outcome.diverged:
            self._settle(entry, State.diverged)
        elif found in (Outcome.stopped, Outcome.elsewhere):
            entry.state = State.resume
            entry.attempts -= 1
            (self.held if found is Outcome.elsewhere else self.todo).append(entry)
        elif found is Outcome.failed and entry.attempts <= self.how.retries:
            entry.state = State.resume
            self.reporter.say(
                f"{entry.job.label}: failed ({_why(code)}), it is tried again\n"
                f"{excerpt(log_path(entry.path))}"
            )
            self.todo.append(entry)
        else:
            self._fail(entry, excerpt(log_path(entry.path)))

    def _fail(self, entry: Entry, fault: str) -> None:
        entry.fault = fault
        self._settle(entry, State.failed)

    def _settle(self, entry: Entry, state: State) -> None:
        entry.state, entry.by = state, None
        self.board.over(entry)


def _why(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code}" + (", perhaps for its memory" if code == -9 else "")
