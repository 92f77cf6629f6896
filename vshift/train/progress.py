"""The progress of a run: bars on a terminal, and one plain line per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vshift.runs.schema import EpochRow
from vshift.runs.summary import error_of, score_in_words
from vshift.text import (
    NONE,
    escape_control,
    escape_lines,
    format_number,
    format_significant,
    shorten_middle,
)

WIDTH = 80  # of an epoch's line


class Reporter:
    """Writes to stderr; stdout is for data."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """Print a message on a line of its own, as it is."""
        if not self.quiet:
            self.console.print(escape(escape_lines(text)))

    def start(
        self, label: str, epoch: int, epochs: int, steps: int, one_batch: bool = False
    ) -> None:
        """Begin a run of `epochs` times `steps` steps after the completed epoch `epoch`.

        Args:
            one_batch: lag is measured in a single batch, which gives no standard errors.
        """
        self._label, self._epochs, self._one_batch = label, epochs, one_batch
        self.open(label, epochs * steps, epoch * steps)

    def open(self, label: str, total: int | None = None, completed: int = 0) -> None:
        """Show a bar on a terminal; its phases have bars of their own, below."""
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(24),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            text = escape(shorten_middle(escape_control(label), 36))
            self._task = self._bar.add_task(text, total=total, completed=completed)
            self._phase = self._bar.add_task("", visible=False)
            self._bar.start()

    def step(self, step: int) -> None:
        """Show the number of the run's steps that are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def phase(self, name: str) -> None:
        """Begin what is done between and after the epochs, as `testing`; empty for nothing."""
        if self._bar is not None:
            self._bar.reset(self._phase, description=name, total=None, visible=bool(name))

    def batch(self, done: int, total: int) -> None:
        """Show how many batches of a pass of the phase are done."""
        if self._bar is not None:
            self._bar.update(self._phase, completed=done, total=total)

    def epoch(self, row: EpochRow, layers: Mapping[str, Any]) -> None:
        """Print an epoch's line, with the mean shift ratio of `summarize_layers` if measured.

        It fits WIDTH columns: what is needed least is left out first, and the label's middle last.
        """
        error = error_of(row.train_accuracy)
        parts = {  # by how much they are needed, the least first
            "speed": f"{row.images_per_second:.0f} images/s",
            "train": "" if error is None else f"train error {format_number(error, 2)} %",
            "loss": f"{'loss' if row.train_accuracy is not None else 'train loss'} "
            f"{_loss(row.train_loss)}",
            "why": self._cause(layers),
            "r2": "" if row.test_r2 is None else f"R² {format_number(row.test_r2, 3)}",
            "shift": _shift(layers),
            "test": f"test {score_in_words(row.to_dict()) or NONE}",
            "epoch": f"epoch {row.epoch:{len(str(self._epochs))}d}/{self._epochs}",
        }
        order = ("epoch", "loss", "train", "test", "r2", "shift", "why", "speed")
        for least in ("", "speed", "train", "loss", "why", "r2"):
            parts.pop(least, None)
            rest = "  ".join(filter(None, (parts.get(key) for key in order)))
            rest = rest.replace("  (", " (")
            if len(self._label) + 2 + len(rest) <= WIDTH:
                break
        self.say(f"{shorten_middle(self._label, max(12, WIDTH - 2 - len(rest)))}  {rest}")

    def _cause(self, layers: Mapping[str, Any]) -> str:
        """What is known of the lag in the mean shift ratio, in brackets; empty for nothing."""
        ratio, without_lag = layers.get("shift_ratio_mean"), layers.get("lag_free_ratio_mean")
        if ratio is None or without_lag is None:
            return ""
        if self._one_batch:
            return "(cause unknown)"
        # Lag may also hide a shift: without it the ratio would be larger.
        is_lag = layers.get("shift_ratio_cause") == "lag" and without_lag < ratio
        return f"(lag; {without_lag:.2f} without)" if is_lag else ""

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _shift(layers: Mapping[str, Any]) -> str:
    ratio = layers.get("shift_ratio_mean")
    return "" if ratio is None else f"shift {ratio:.2f}"


def _loss(value: float | None) -> str:
    small = value is None or value < 1e4
    return format_number(value, 3) if small else format_significant(value, 3)
