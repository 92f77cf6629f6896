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
    join_words,
    shorten_middle,
    wrap_words,
)

# What a narrow terminal's line of an epoch leaves out, what is needed least first.
_LEFT_OUT = {
    "speed": "images/s",
    "loss": "training loss",
    "lag": "BN's lag",
    "r2": "R²",
    "shift": "shift ratio",
}
# Of an epoch's line on a terminal: the label is whole up to here before anything is left out; and
# it keeps this much, the end of the name and the seed, where a terminal is very narrow.
_LABEL, _LEAST_LABEL = 16, 9


class Reporter:
    """Writes to stderr; stdout is for data."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._left_out: set[str] = set()  # of epochs' lines, which a note has named
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """Print a message on a line of its own; a terminal's lines break at words.

        What asks for attention begins with `note:` or `warning:`.
        """
        if not self.quiet:
            width = self.console.width if self.console.is_terminal else None
            self.console.print(escape(wrap_words(escape_lines(text), width)))

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
            room = min(36, max(_LEAST_LABEL, self.console.width - 40))  # beside the other columns
            text = escape(shorten_middle(escape_control(label), room))
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

        On a terminal it fits one line: what is needed least is left out, as a note says once, and
        the label is shortened in its middle. The scores always stay. A log gets everything.
        """
        error = error_of(row.train_accuracy)
        loss = f"loss {_loss(row.train_loss)}"
        train = f"train {loss}" if error is None else f"train {format_number(error, 2)} %"
        parts = {
            "epoch": f"epoch {row.epoch:{len(str(self._epochs))}d}/{self._epochs}",
            "loss": "" if error is None else loss,
            "scores": f"test {score_in_words(row.to_dict()) or NONE} ({train})",
            "r2": "" if row.test_r2 is None else f"R² {format_number(row.test_r2, 3)}",
            **self._shift(layers),
            "speed": f"{row.images_per_second:.0f} images/s",
        }
        is_log = not self.console.is_terminal
        room = 0 if is_log else self.console.width - min(len(self._label), _LABEL) - 2
        left_out = []
        for least in () if is_log else _LEFT_OUT:
            if len(_joined(parts)) > room and parts.pop(least, ""):
                left_out.append(least)
        if new := [_LEFT_OUT[key] for key in left_out if key not in self._left_out]:
            self._left_out.update(left_out)
            self.say(f"note: too narrow for {join_words(new)}; a wider terminal shows them")
        text = _joined(parts)
        width = len(self._label) if is_log else self.console.width - 2 - len(text)
        self.say(f"{shorten_middle(self._label, max(_LEAST_LABEL, width))}  {text}")

    def _shift(self, layers: Mapping[str, Any]) -> dict[str, str]:
        """The mean shift ratio, and in brackets what is known of BN's lag in it.

        Where that is the larger part, the ratio is the one without it.
        """
        ratio, without_lag = layers.get("shift_ratio_mean"), layers.get("lag_free_ratio_mean")
        if ratio is None or without_lag is None:
            return {} if ratio is None else {"shift": f"shift {ratio:.2f}"}
        if self._one_batch:
            return {"shift": f"shift {ratio:.2f}", "lag": "(may be BN's lag)"}
        # Lag may also hide a shift: without it the ratio would be larger.
        if layers.get("shift_ratio_cause") == "lag" and without_lag < ratio:
            return {"shift": f"shift {without_lag:.2f}", "lag": f"({ratio:.2f} with BN's lag)"}
        return {"shift": f"shift {ratio:.2f}"}

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _joined(parts: Mapping[str, str]) -> str:
    return "  ".join(filter(None, parts.values())).replace("  (", " (")


def _loss(value: float | None) -> str:
    small = value is None or value < 1e4
    return format_number(value, 3) if small else format_significant(value, 3)
