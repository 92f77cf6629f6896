"""`vshift watch`: a live table of runs."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from vshift.errors import RunError, Stopped, VShiftError
from vshift.live.tensorboard import TensorBoardWriter
from vshift.runs import find_runs
from vshift.runs.folder import RUN
from vshift.runs.read import RunRecord, number
from vshift.runs.summary import score_in_words
from vshift.tables import Column, Table, live_table, write
from vshift.text import (
    NONE,
    escape_control,
    format_duration,
    format_integer,
    format_number,
    short_labels,
)

_LAST = 3  # epochs that the speed is averaged over
# A running run is silent if it wrote nothing for this many of its epochs, and at least a minute.
_SILENT_EPOCHS, _SILENT_SECONDS = 3.0, 60.0
_ORDER = ("running", "failed", "diverged", "damaged", "interrupted", "done")
_STYLES = {
    "running": "cyan", "silent": "yellow", "interrupted": "yellow", "done": "green",
    "failed": "red", "diverged": "red", "damaged": "red",
}  # fmt: skip
_COLUMNS = (
    Column("run", is_text=True),
    Column("status", 99, is_text=True),
    Column("epoch", 98),
    Column("test", 50),
    Column("mean\nshift ratio", 20),
    Column("images/s", 10),
    Column("left", 40),
    Column("age", 30),
)
_FRAME = 6  # lines of the display that are not runs


def watch(
    folders: Sequence[Path],
    *,
    once: bool = False,
    as_json: bool = False,
    every: float = 2.0,
    writer: TensorBoardWriter | None = None,
) -> None:
    """Show the runs until q or Ctrl-C; only once with `once` or without a terminal.

    Args:
        as_json: print a list of objects, once.
        every: seconds between two looks.
        writer: also writes every run's numbers.

    Raises:
        VShiftError: a folder is missing, or the writer's own is among the runs.
    """
    for folder in folders:
        if writer and writer.out and writer.out.resolve().is_relative_to(folder.resolve()):
            raise VShiftError(
                f"--out {writer.out}: it lies in {folder}, where its folders would be taken for "
                "runs; name one elsewhere"
            )
    watcher = Watcher(folders)
    runs = watcher.look()
    console = Console()
    if once or as_json or not console.is_terminal:
        if writer is not None:
            writer.update(find_runs(folders))
        if as_json:
            print(json.dumps([to_json(run) for run in runs], indent=1))
        else:
            write(to_table(_briefly(runs) if console.is_terminal else runs), "table", sys.stdout)
        return
    # Ctrl-C is a normal way to leave; nothing is lost.
    with (
        suppress(KeyboardInterrupt, Stopped),
        _key_presses() as key_within,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(display(watcher.look(), console.width, console.height), refresh=True)
            if writer is not None:
                writer.update(find_runs(watcher.folders))
            if key_within(every) in ("q", "Q", "\x1b"):
                return


@contextmanager
def _key_presses() -> Iterator[Callable[[float], str]]:
    """Read single keys from the terminal, within a number of seconds; restore it afterwards."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, termios.error):

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait  # no keyboard: Ctrl-C still works
        return

    def key_within(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode("latin-1") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield key_within
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# ---- reading


@dataclass(frozen=True)
class RunSnapshot:
    """One run at one moment.

    Attributes:
        status: from run.json; `silent` if a running run has stopped writing.
        last: the last epoch's row of metrics.jsonl.
        shift: mean shift ratio, None before it is measured.
        speed: training images per second.
        left: seconds to the last epoch, by the last epochs' speed; None if not running.
        age: seconds since the run wrote anything.
    """

    path: Path
    name: str
    seed: int
    status: str
    epoch: int
    epochs: int | None
    last: dict[str, Any]
    shift: float | None
    speed: float | None
    left: float | None
    age: float | None


def snapshot(run: RunRecord, now: float) -> RunSnapshot:
    """A run as its files are at `now`, on time.time()'s clock."""
    last = run.metrics[-1] if run.metrics else {}
    epoch, epochs = number(last.get("epoch")) or 0, number(run.config.get("epochs"))
    known = [s for row in run.metrics[-_LAST:] if (s := number(row.get("seconds"))) is not None]
    seconds = fmean(known) if known else None
    # Before there is a summary, the shift is that of the last measured epoch.
    shift = number(run.summary.get("shift_ratio_mean"))
    if shift is None and run.status != "done":
        rows = [row for row in run.layers if row.get("kind", "bn") == "bn"]
        ratios = [(row.get("epoch"), number(row.get("shift_ratio"))) for row in rows]
        measured = [(at, ratio) for at, ratio in ratios if ratio is not None]
        shift = fmean(r for at, r in measured if at == measured[-1][0]) if measured else None
    try:
        with os.scandir(run.path) as entries:
            times = [entry.stat().st_mtime for entry in entries if entry.is_file()]
    except OSError:  # the folder was removed meanwhile
        times = []
    age = max(0.0, now - max(times)) if times else None
    status, left = run.status, None
    if status == "running" and seconds is not None:
        if age is not None and age > max(_SILENT_SECONDS, _SILENT_EPOCHS * seconds):
            status = "silent"
        elif epochs is not None:
            left = max(0.0, (epochs - epoch) * seconds - min(age or 0.0, seconds))
    return RunSnapshot(
        path=run.path,
        name=escape_control(run.name),
        seed=run.seed,
        status=status,
        epoch=int(epoch),
        epochs=None if epochs is None else int(epochs),
        last=last,
        shift=shift,
        speed=number(last.get("images_per_second")),
        left=left,
        age=age,
    )


class Watcher:
    """Reads the runs under some folders again and again; runs that are done only once."""

    def __init__(self, folders: Sequence[Path], clock: Callable[[], float] = time.time) -> None:
        self.folders, self.clock = folders, clock
        self._done: dict[Path, tuple[float, RunSnapshot]] = {}

    def look(self) -> list[RunSnapshot]:
        """All runs, those that need attention first.

        Raises:
            RunError: a folder is missing or is a file.
        """
        try:
            records = find_runs(self.folders)
        except RunError:
            if not all(os.path.isdir(folder) for folder in self.folders):
                raise
            records = []  # no run yet: a sweep may be about to begin
        order = {status: rank for rank, status in enumerate(_ORDER)}
        return sorted(map(self._snapshot, records), key=lambda run: order.get(run.status, 0))

    def _snapshot(self, run: RunRecord) -> RunSnapshot:
        try:
            changed = (run.path / RUN).stat().st_mtime if run.status == "done" else None
        except OSError:  # the run is being removed
            changed = None
        known = self._done.get(run.path)
        if known is not None and known[0] == changed:
            return known[1]
        new = snapshot(run, self.clock())
        if changed is not None:
            self._done[run.path] = changed, new
        return new


# ---- drawing


def display(runs: Sequence[RunSnapshot], width: int, height: int) -> RenderableType:
    """The runs that fit a terminal, with colours; the others are counted below."""
    room = max(1, height - _FRAME)
    table = to_table(_briefly(runs)[:room])
    styles = [_STYLES.get(run.status, "") for run in runs[:room]]
    more = f", {len(runs) - room} more below" if len(runs) > room else ""
    foot = f"\n{counts(runs)}{more}. q leaves; training continues."
    return Group(live_table(table, width, styles), Text(foot, style="dim"))


def _briefly(runs: Sequence[RunSnapshot]) -> list[RunSnapshot]:
    """The runs under names without what all of them begin with."""
    names = list(dict.fromkeys(run.name for run in runs))
    short = dict(zip(names, short_labels(names), strict=True))
    return [replace(run, name=short[run.name]) for run in runs]


def to_table(runs: Sequence[RunSnapshot]) -> Table:
    """One row per run, and how many there are of each status."""
    return Table(_COLUMNS, list(map(_cells, runs)), f"{counts(runs)}.")


def _cells(run: RunSnapshot) -> list[str]:
    return [
        f"{run.name} seed {run.seed}",
        run.status,
        f"{run.epoch}/{NONE if run.epochs is None else run.epochs}",
        score_in_words(run.last) or NONE,
        format_number(run.shift, 3),
        format_integer(run.speed),
        format_duration(run.left),
        NONE if run.status == "done" else format_duration(run.age),
    ]


def to_json(run: RunSnapshot) -> dict[str, Any]:
    """What the table shows of a run, as numbers; those of epochs under metrics.jsonl's names."""
    keys = ("test_accuracy", "test_rmse", "test_loss", "train_loss", "images_per_second")
    return {
        "path": str(run.path),
        "name": run.name,
        "seed": run.seed,
        "status": run.status,
        "epoch": run.epoch,
        "epochs": run.epochs,
        **{key: number(run.last.get(key)) for key in keys},
        "shift_ratio_mean": run.shift,
        "seconds_left": run.left,
        "seconds_since_change": run.age,
    }


def counts(runs: Sequence[RunSnapshot]) -> str:
    """`2 running, 1 failed, 5 done`."""
    statuses = Counter(run.status for run in runs)
    return ", ".join(f"{n} {status}" for status, n in statuses.items()) or "no runs yet"
