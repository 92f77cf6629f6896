"""The progress of a run: a bar on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vshift.runs.schema import EpochRow
from vshift.text import escape_lines, format_number, format_significant

WIDTH = 80  # of an epoch's line, where that is enough without the speed


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
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            total, done = epochs * steps, epoch * steps
            self._task = self._bar.add_task(escape(label), total=total, completed=done)
            self._bar.start()

    def step(self, step: int) -> None:
        """Show the number of the run's steps that are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def epoch(self, row: EpochRow, layers: Mapping[str, Any]) -> None:
        """Print an epoch's line, with the mean shift ratio of `summarize_layers` if measured."""
        loss = _loss(row.train_loss)
        scores = f"train loss {loss}  test loss {_loss(row.test_loss)}"
        if row.train_accuracy is not None:
            train, test = (format_number(a, 2) for a in (row.train_accuracy, row.test_accuracy))
            scores = f"loss {loss}  train {train} %  test {test} %"
        elif row.test_rmse is not None:
            scores += f"  test RMSE {_loss(row.test_rmse)}  R² {format_number(row.test_r2, 3)}"
        line = (
            f"{self._label}  epoch {row.epoch:{len(str(self._epochs))}d}/{self._epochs}"
            f"  {scores}{self._shift(layers)}"
        )
        speed = f"  {row.images_per_second:.0f} images/s"
        self.say(line + speed if len(line + speed) <= WIDTH else line)

    def _shift(self, layers: Mapping[str, Any]) -> str:
        """The mean shift ratio, if measured, and what is known of its lag."""
        ratio, without_lag = layers.get("shift_ratio_mean"), layers.get("lag_free_ratio_mean")
        if ratio is None:
            return ""
        why = ""
        if without_lag is not None:
            if self._one_batch:
                why = " (cause unknown: one batch)"
            # Lag may also hide a shift: without it the ratio would be larger.
            elif layers.get("shift_ratio_cause") == "lag" and without_lag < ratio:
                why = f" (lag; {without_lag:.2f} without)"
        return f"  shift {ratio:.2f}{why}"

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _loss(value: float | None) -> str:
    small = value is None or value < 1e4
    return format_number(value, 3) if small else format_significant(value, 3)
