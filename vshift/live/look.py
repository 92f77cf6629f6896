"""What a run's folder says at one moment, read without troubling the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vshift.errors import RunError
from vshift.runs import find_runs
from vshift.runs.folder import RUN
from vshift.runs.read import RunRecord, number
from vshift.text import escape_control

_LAST = 3  # epochs that the speed is taken of
# A run is called silent where nothing was written for so many of its epochs, and a minute at least.
_SILENT_EPOCHS, _SILENT_SECONDS = 3.0, 60.0
_ORDER = ("running", "failed", "diverged", "damaged", "interrupted", "done")


@dataclass(frozen=True)
class Seen:
    """One run at one moment.

    Attributes:
        status: as run.json says; `silent` for a running one that has stopped writing.
        accuracy: test accuracy in percent; loss: test loss, where nothing is classified.
        shift: mean shift ratio, None before it is measured.
        speed: training images a second.
        left: seconds to the last epoch, by the last epochs' speed; None if not running.
        age: seconds since the run wrote anything.
    """

    name: str
    seed: int
    status: str
    epoch: int
    epochs: int | None
    accuracy: float | None
    loss: float | None
    shift: float | None
    speed: float | None
    left: float | None
    age: float | None


def look(run: RunRecord, now: float) -> Seen:
    """A run as its files are at `now`, seconds since the epoch of time.time()."""
    rows = run.metrics
    last = rows[-1] if rows else {}
    epoch, epochs = (number(value) for value in (last.get("epoch"), run.config.get("epochs")))
    seconds = _epoch_seconds(rows)
    age = _age(run.path, now)
    status = run.status
    if status == "running" and age is not None and seconds is not None:
        silent = age > max(_SILENT_SECONDS, _SILENT_EPOCHS * seconds)
        status = "silent" if silent else status
    left = None
    if status == "running" and seconds is not None and epochs is not None:
        left = max(0.0, (epochs - (epoch or 0)) * seconds - min(age or 0.0, seconds))
    return Seen(
        name=escape_control(run.name),
        seed=run.seed,
        status=status,
        epoch=int(epoch or 0),
        epochs=None if epochs is None else int(epochs),
        accuracy=number(last.get("test_accuracy")),
        loss=number(last.get("test_loss")),
        shift=_shift(run),
        speed=number(last.get("images_per_second")),
        left=left,
        age=age,
    )


def _epoch_seconds(rows: Sequence[dict[str, Any]]) -> float | None:
    found = [number(row.get("seconds")) for row in rows[-_LAST:]]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _shift(run: RunRecord) -> float | None:
    """From the summary, or before there is one from the last epoch that was measured."""
    final = number(run.summary.get("shift_ratio_mean"))
    if final is not None or run.status == "done":
        return final
    found = [(row.get("epoch"), number(row.get("shift_ratio"))) for row in run.layers]
    measured = [(epoch, ratio) for epoch, ratio in found if ratio is not None]
    last = [ratio for epoch, ratio in measured if epoch == measured[-1][0]]
    return sum(last) / len(last) if last else None


def _age(folder: Path, now: float) -> float | None:
    """Seconds since any of its files changed."""
    try:
        with os.scandir(folder) as entries:
            times = [entry.stat().st_mtime for entry in entries if entry.is_file()]
    except OSError:  # the folder went away while we looked
        return None
    return max(0.0, now - max(times)) if times else None


class Watcher:
    """The runs under some folders, looked at again and again; runs that are done only once."""

    def __init__(self, folders: Sequence[Path], clock: Callable[[], float] = time.time) -> None:
        self.folders, self.clock = folders, clock
        self._done: dict[Path, tuple[float, Seen]] = {}

    def look(self) -> list[Seen]:
        """All runs: those that need an eye first.

        Raises:
            RunError: a folder is missing or is a file.
        """
        found = [self._see(run) for run in self._runs()]
        order = {status: place for place, status in enumerate(_ORDER)}
        return sorted(found, key=lambda seen: order.get(seen.status, 0))

    def _runs(self) -> list[RunRecord]:
        try:
            return find_runs(self.folders)
        except RunError:
            if all(folder.is_dir() for folder in self.folders):
                return []  # no run yet: a sweep may be about to begin
            raise

    def _see(self, run: RunRecord) -> Seen:
        changed = _changed(run.path / RUN) if run.status == "done" else None
        known = self._done.get(run.path)
        if known is not None and known[0] == changed:
            return known[1]
        seen = look(run, self.clock())
        if changed is not None:
            self._done[run.path] = (changed, seen)
        return seen


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # the run is being removed
        return None
