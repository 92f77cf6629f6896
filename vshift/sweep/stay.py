"""Runs on their way through the cluster, seen through their folders until all are settled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vshift.errors import RunError, Stopped
from vshift.sweep import queue
from vshift.sweep.board import Board, Entry
from vshift.sweep.estimate import Pace
from vshift.sweep.logs import excerpt, log_path
from vshift.sweep.sbatch import Slurm
from vshift.sweep.state import State, see
from vshift.train.progress import Reporter

SQUEUE_EVERY = 60.0  # seconds
FOLDERS = 100  # that are looked at in a second, at most: a file system is shared with others


def stay(entries: list[Entry], runs_dir: Path, how: Slurm, reporter: Reporter) -> None:
    """Look at the run folders until every run is settled or lost."""
    watch = Watch(entries, runs_dir, how, reporter)
    try:
        watch.until_over()
    except Stopped:
        reporter.say("the Slurm jobs go on; the same command shows where they are")
        raise


class Watch:
    """Looks at what is left; a run that nobody is responsible for any more has failed."""

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
                time.sleep(max(1.0, len(left) / FOLDERS))

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
