"""The display of a sweep: the live table, one line per run, and its end."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from vshift.errors import TrainingFailed
from vshift.runs import number
from vshift.runs.files import Row
from vshift.runs.summary import score_in_words
from vshift.sweep.estimates import RuntimeEstimator, makespan
from vshift.sweep.logs import log_path
from vshift.sweep.plan import Job
from vshift.sweep.status import State, all_statuses, last_epoch
from vshift.tables import Column, Table, live_table
from vshift.text import NONE, first_lines, format_duration, format_integer, pluralize, short_labels
from vshift.train.progress import Reporter

INTERVAL = 1.0  # seconds between two looks at the running runs' metrics
_WORDS = {State.new: "waiting", State.resume: "to resume"}
# The order of the line of counts.
_COUNTED = (
    "done", "running", "running elsewhere", "queued", "to resume", "waiting", "failed", "diverged",
)  # fmt: skip
_STYLES = {"failed": "red", "diverged": "red", "done": "green"}
_RECENT = 5  # finished runs that stay in the table
_FRAME = 5  # lines of the table that are not runs
_COLUMNS = (
    Column("run", is_text=True),
    Column("state", 99, is_text=True),
    Column("epoch", 98),
    Column("test", 40),
    Column("images/s", 10),
    Column("left", 30),
)


@dataclass
class Entry:
    """A run of the sweep, as far as it is known."""

    job: Job
    path: Path
    state: State
    by: str | None = None  # the process elsewhere, or the Slurm job
    attempts: int = 0
    started: float = 0.0  # the attempt that is running here, on time.monotonic's clock
    ended: float | None = None  # when it was settled here
    fault: str = ""
    last: Row = field(default_factory=dict)  # of metrics.jsonl

    @property
    def word(self) -> str:
        if self.state is State.running and self.by:
            return "running elsewhere"
        return _WORDS.get(self.state, str(self.state))

    @property
    def is_over(self) -> bool:
        """Whether this sweep does nothing more about it."""
        return self.state.settled or self.state is State.failed

    def seconds_left(self, estimator: RuntimeEstimator) -> float | None:
        """Seconds until it is done, once it runs."""
        done, per_epoch = number(self.last.get("epoch")), number(self.last.get("seconds"))
        if done and per_epoch is not None:
            return (self.job.config.epochs - done) * per_epoch
        return estimator.seconds(self.job.config, guess=True)


def entries_of(jobs: Sequence[Job], runs_dir: Path) -> list[Entry]:
    """One entry per job, in its present state; RunError if folders hold other configs' runs."""
    return [
        Entry(job, job.path(runs_dir), status.state, status.by)
        for job, status in zip(jobs, all_statuses(jobs, runs_dir), strict=True)
    ]


def counts(entries: Iterable[Entry]) -> str:
    """`3 done, 2 running, 1 to resume, 7 waiting`."""
    words = Counter(entry.word for entry in entries)
    return ", ".join(f"{words[word]} {word}" for word in _COUNTED if words[word])


class ProgressTable:
    """Shows a sweep's entries while other code changes them.

    On a terminal it is a live table, elsewhere one plain line per run that ends.
    """

    def __init__(self, entries: Sequence[Entry], slots: int, reporter: Reporter) -> None:
        self.entries, self.slots, self.reporter = entries, slots, reporter
        self.estimator = RuntimeEstimator()
        for entry in entries:
            if entry.state is State.done:
                self.estimator.add_run(entry.path, entry.job.config)
        self._refreshed = -INTERVAL
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Inside, there is a live table if stderr is a terminal."""
        console = self.reporter.console
        if self.reporter.quiet or not console.is_terminal:
            yield
            return
        try:
            with Live(console=console, auto_refresh=False, transient=True) as self._live:
                yield
        finally:
            self._live = None

    def refresh(self) -> None:
        """On a terminal, read the running runs and draw, at most once per INTERVAL."""
        if self._live is None or time.monotonic() - self._refreshed < INTERVAL:
            return
        self._refreshed = time.monotonic()
        for entry in self.entries:
            if entry.state is State.running:
                entry.last = last_epoch(entry.path)
        console = self.reporter.console
        self._live.update(self.table(console.height, console.width), refresh=True)

    def settle(self, entry: Entry, state: State, fault: str = "") -> None:
        """Record how a run ended, and without a table print its line."""
        entry.state, entry.by, entry.fault = state, None, fault
        entry.ended = time.monotonic()
        if state is State.done:
            self.estimator.add_run(entry.path, entry.job.config)
            entry.last = last_epoch(entry.path)
            if self._live is not None:
                return
        over = sum(other.is_over for other in self.entries)
        text = f"[{over}/{len(self.entries)}] {entry.job.label}: {entry.word}"
        if entry.started:
            text += f" after {format_duration(entry.ended - entry.started)}"
        if tested := score_in_words(entry.last):
            text += f", test {tested}"
        self.reporter.say(text + self._about_left() + (f"\n{fault}" if fault else ""))

    def _about_left(self) -> str:
        return f"; about {format_duration(left)} left" if (left := self.seconds_left()) else ""

    def seconds_left(self) -> float | None:
        """Seconds until this sweep's own runs are done; None if that cannot be known."""
        here = [e for e in self.entries if e.state is State.running and not e.by]
        speeds = [speed for e in here if (speed := number(e.last.get("seconds"))) is not None]
        epoch = statistics.median(speeds) if speeds else None  # before any run is done
        running = [entry.seconds_left(self.estimator) for entry in here]
        waiting = [
            self.estimator.seconds(e.job.config, guess=True)
            or (epoch * e.job.config.epochs if epoch else None)
            for e in self.entries
            if e.state in (State.new, State.resume, State.queued)
        ]
        known = [seconds for seconds in (*running, *waiting) if seconds is not None]
        if len(known) < len(running) + len(waiting):
            return None
        return makespan(known[: len(running)], known[len(running) :], self.slots)

    def table(self, height: int, width: int) -> RenderableType:
        """Counts, running runs and the last ones that ended, in at most `height` lines."""
        room = max(1, height - _FRAME)
        running = [e for e in self.entries if e.state is State.running]
        recent = [e for e in self.entries if e.is_over and e.ended is not None]
        recent.sort(key=lambda entry: entry.ended or 0.0)
        recent = recent[-min(_RECENT, max(0, room - 1)) :] if room > 1 else []
        shown = running[: room - len(recent)] + recent
        names = list(dict.fromkeys(entry.job.config.name for entry in self.entries))
        short = dict(zip(names, short_labels(names), strict=True))
        rows = Table(_COLUMNS, [_cells(entry, self.estimator, short) for entry in shown])
        styles = [_STYLES.get(entry.word, "") for entry in shown]
        hidden = len(running) - sum(entry.state is State.running for entry in shown)
        text = counts(self.entries) + self._about_left()
        head = Text(text, "bold", no_wrap=True, overflow="ellipsis")
        foot = [Text(f"and {hidden} more that are running", "dim")] if hidden > 0 else []
        return Group(head, live_table(rows, width, styles), *foot)


def _cells(entry: Entry, estimator: RuntimeEstimator, short: Mapping[str, str]) -> list[str]:
    """The row of a run, under the short name of its config."""
    running = entry.state is State.running
    epoch = f"{number(entry.last.get('epoch')) or 0:.0f}/{entry.job.config.epochs}"
    return [
        f"{short[entry.job.config.name]} seed {entry.job.seed}",
        entry.word + (f" ({entry.by})" if entry.by else ""),
        epoch if entry.last or running else NONE,
        score_in_words(entry.last) or NONE,
        format_integer(number(entry.last.get("images_per_second"))),
        format_duration(entry.seconds_left(estimator) if running else None),
    ]


# ---- at its end

MOST_NAMED = 20


def raise_if_failed(entries: Sequence[Entry]) -> None:
    """Name the runs that failed or diverged, and where their messages are.

    Raises:
        TrainingFailed: if there are any.
    """
    failed = [e for e in entries if e.state in (State.failed, State.diverged)]
    if not failed:
        return
    lines = []
    for entry in failed:
        why = f"{entry.word}, " if entry.state is State.diverged else ""
        log = log_path(entry.path)
        lines.append(f"  {entry.job.label}: {why}see {log if log.exists() else entry.path}")
    head = f"{len(failed)} of {pluralize(len(entries), 'run')} failed:"
    shown = first_lines(lines, MOST_NAMED, "  and {:,} more")
    raise TrainingFailed("\n".join([head, *shown]))
