"""The progress of a run: a bar on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vshift.runs.schema import EpochRow
from vshift.text import escape_lines, format_number, format_significant


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

    def start(self, label: str, epoch: int, epochs: int, steps: int) -> None:
        """Begin a run of `epochs` times `steps` steps after the completed epoch `epoch`."""
        self._label, self._epochs = label, epochs
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
        scores = f"test loss {_loss(row.test_loss)}"
        if row.train_accuracy is not None:
            train, test = (format_number(a, 2) for a in (row.train_accuracy, row.test_accuracy))
            scores = f"train {train} %  test {test} %"
        elif row.test_rmse is not None:
            scores += f"  test RMSE {_loss(row.test_rmse)}  R² {format_number(row.test_r2, 3)}"
        ratio, without_lag = layers.get("shift_ratio_mean"), layers.get("lag_free_ratio_mean")
        shift = "" if ratio is None else f"  mean shift ratio {ratio:.3f}"
        if layers.get("shift_ratio_cause") == "lag":
            shift += f", most of it lag of BN's average: {format_number(without_lag, 3)} without"
        self.say(
            f"{self._label}  epoch {row.epoch:{len(str(self._epochs))}d}/{self._epochs}"
            f"  train loss {_loss(row.train_loss)}  {scores}"
            f"  {row.images_per_second:.0f} images/s{shift}"
        )

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _loss(value: float | None) -> str:
    small = value is None or value < 1e4
    return format_number(value, 3) if small else format_significant(value, 3)
