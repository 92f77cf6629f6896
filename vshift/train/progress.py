"""What a person sees while a run trains: a bar on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vshift.text import escape_lines


class Reporter:
    """Writes to stderr; stdout is for data."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """One message of its own line, printed as it is."""
        if not self.quiet:
            # A terminal that is gone, or a full disk under a log, does not end a run.
            with suppress(OSError):
                self.console.print(escape(escape_lines(text)))

    def start(self, label: str, epoch: int, epochs: int, steps: int) -> None:
        """A run begins at this epoch, counted from 0."""
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
            self._task = self._bar.add_task(
                escape(label), total=epochs * steps, completed=epoch * steps
            )
            self._bar.start()

    def step(self, steps: int = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def epoch(self, row: dict[str, Any], ratio: float | None) -> None:
        """One line an epoch; the ratio is the mean shift ratio where it was measured."""
        shift = "" if ratio is None else f"  mean shift ratio {ratio:.3f}"
        digits = len(str(self._epochs))
        self.say(
            f"{self._label}  epoch {row['epoch']:{digits}d}/{self._epochs}"
            f"  train loss {_loss(row['train_loss'])}"
            f"  {_tested(row)}"
            f"  {row['images_per_second']:.0f} images/s{shift}"
        )

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _loss(value: float | None) -> str:
    return _number(value, ".3f" if value is None or value < 1e4 else ".3g")


def _tested(row: dict[str, Any]) -> str:
    """Accuracies, or where nothing is classified the loss."""
    if row["train_accuracy"] is None:
        return f"test loss {_loss(row['test_loss'])}"
    train, test = (_number(row[f"{part}_accuracy"], ".2f") for part in ("train", "test"))
    return f"train {train} %  test {test} %"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
