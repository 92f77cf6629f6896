"""What a person sees of a sweep: a live table on a terminal, one plain line a run elsewhere."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vshift.runs import number
from vshift.runs.files import Row
from vshift.sweep.estimate import Pace, in_words, side_by_side
from vshift.sweep.plan import Job
from vshift.sweep.state import State, last_epoch
from vshift.text import escape_lines
from vshift.train.progress import Reporter

EVERY = 1.0  # seconds between two looks at the running runs' metrics
_WORDS = {State.new: "waiting", State.resume: "waiting", State.running: "running"}
# In this order in the line of counts.
_COUNTED = ("done", "running", "running elsewhere", "queued", "waiting", "failed", "diverged")
_STYLES = {"failed": "red", "diverged": "red", "done": "green"}
_RECENT = 5  # finished runs that the table keeps showing
_FRAME = 5  # lines of the table that are no runs


@dataclass
class Entry:
    """A run of the sweep, as far as it is known."""

    job: Job
    path: Path
    state: State
    by: str | None = None  # the process elsewhere, or the Slurm job
    attempts: int = 0
    began: float = 0.0  # of the attempt that is running here, on time.monotonic's clock
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

    def left(self, pace: Pace) -> float | None:
        """Seconds until it is done, once it runs."""
        done, speed = number(self.last.get("epoch")), number(self.last.get("seconds"))
        if done and speed is not None:
            return (self.job.config.epochs - done) * speed
        return pace.seconds(self.job.config, guess=True)


class Board:
    """Shows the entries of a sweep while other code changes them."""

    def __init__(
        self, entries: Sequence[Entry], pace: Pace, places: int, reporter: Reporter
    ) -> None:
        self.entries, self.pace, self.places, self.reporter = entries, pace, places, reporter
        self._looked = -EVERY
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if self.reporter.console.is_terminal and not self.reporter.quiet:
            self._live = Live(console=self.reporter.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def refresh(self) -> None:
        """On a terminal, look at the running runs and draw, at most every EVERY seconds."""
        if self._live is None or time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        for entry in self.entries:
            if entry.state is State.running:
                entry.last = last_epoch(entry.path)
        console = self.reporter.console
        self._live.update(self.table(console.height, console.width), refresh=True)

    def over(self, entry: Entry) -> None:
        """A run is settled, or has failed for good: its line, where there is no table."""
        entry.ended = time.monotonic()
        if entry.state is State.done:
            entry.last = last_epoch(entry.path)
        if self._live is not None and entry.state is State.done:
            return
        finished = sum(e.is_over for e in self.entries)
        text = f"[{finished}/{len(self.entries)}] {entry.job.label}: {entry.word}"
        if entry.began:
            text += f" after {in_words(entry.ended - entry.began)}"
        if _tested(entry.last):
            text += f", test {_tested(entry.last)}"
        left = self.left()
        if left:
            text += f"; about {in_words(left)} left"
        self.reporter.say(text + (f"\n{entry.fault}" if entry.fault else ""))

    def counts(self) -> str:
        """`3 done, 2 running, 7 waiting`."""
        found = Counter(entry.word for entry in self.entries)
        return ", ".join(f"{found[word]} {word}" for word in _COUNTED if found[word])

    def left(self) -> float | None:
        """Seconds until all that this sweep does is done; None where that cannot be known."""
        here = [e for e in self.entries if e.state is State.running and not e.by]
        speeds = [speed for e in here if (speed := number(e.last.get("seconds"))) is not None]
        epoch = statistics.median(speeds) if speeds else None  # before any run is done
        running = [entry.left(self.pace) for entry in here]
        waiting = [
            self.pace.seconds(e.job.config, guess=True)
            or (epoch * e.job.config.epochs if epoch else None)
            for e in self.entries
            if e.word in ("waiting", "queued")
        ]
        known = [seconds for seconds in (*running, *waiting) if seconds is not None]
        if len(known) < len(running) + len(waiting):
            return None
        return side_by_side(known[: len(running)], known[len(running) :], self.places)

    def table(self, height: int, width: int) -> RenderableType:
        """Counts, running runs and the last ones that ended, in at most `height` lines."""
        left = self.left()
        head = self.counts() + (f"; about {in_words(left)} left" if left else "")
        room = max(1, height - _FRAME)
        shown = self._shown(room)
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, width=width)
        grid.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("state", "epoch", "test", "images/s", "left"):
            grid.add_column(name, no_wrap=True, justify="left" if name == "state" else "right")
        for entry in shown:
            grid.add_row(*(Text(cell, style) for cell, style in _cells(entry, self.pace)))
        lines: list[RenderableType] = [Text(head, "bold", no_wrap=True, overflow="ellipsis"), grid]
        hidden = sum(e.state is State.running for e in self.entries) - sum(
            e.state is State.running for e in shown
        )
        if hidden > 0:
            lines.append(Text(f"and {hidden} more that are running", "dim"))
        return Group(*lines)

    def _shown(self, room: int) -> list[Entry]:
        running = [e for e in self.entries if e.state is State.running]
        recent = [e for e in self.entries if e.is_over and e.ended is not None]
        recent.sort(key=lambda entry: entry.ended or 0.0)
        keep = min(_RECENT, len(recent), max(0, room - 1))
        return running[: room - keep] + (recent[-keep:] if keep else [])


def _cells(entry: Entry, pace: Pace) -> Iterable[tuple[str, str]]:
    running = entry.state is State.running
    epoch = number(entry.last.get("epoch"))
    speed = number(entry.last.get("images_per_second"))
    left = entry.left(pace) if running else None
    word = entry.word + (f" ({entry.by})" if entry.by else "")
    return [
        (escape_lines(entry.job.label), ""),
        (word, _STYLES.get(entry.word, "")),
        (f"{epoch or 0:.0f}/{entry.job.config.epochs}" if entry.last or running else "", ""),
        (_tested(entry.last), ""),
        (f"{speed:.0f}" if speed else "", ""),
        (in_words(left) if left is not None else "", ""),
    ]


def _tested(row: Row) -> str:
    """`89.31 %`, or where nothing is classified the loss."""
    accuracy, loss = number(row.get("test_accuracy")), number(row.get("test_loss"))
    if accuracy is not None:
        return f"{accuracy:.2f} %"
    return f"loss {loss:.3g}" if loss is not None else ""


def entries_of(jobs: Sequence[Job], seen: Sequence[Any], runs_dir: Path) -> list[Entry]:
    """One entry a job, in the state that it was seen in."""
    return [
        Entry(job, job.path(runs_dir), found.state, found.by)
        for job, found in zip(jobs, seen, strict=True)
    ]
