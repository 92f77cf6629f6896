"""`vshift watch`: a live table of runs, read from their folders; training knows nothing of it."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vshift.errors import Stopped
from vshift.live.look import Watcher
from vshift.live.show import plain, table
from vshift.runs import find_runs

if TYPE_CHECKING:
    from rich.console import Console


def watch(
    folders: Sequence[Path], *, once: bool = False, every: float = 2.0, tensorboard: bool = False
) -> None:
    """Show the runs until q, Ctrl-C or, with `once` or without a terminal, at once.

    Args:
        every: seconds between two looks.
        tensorboard: also mirror every run's numbers into `<run>/tensorboard`.

    Raises:
        VShiftError: a folder is missing; tensorboard is asked for and not installed.
    """
    from rich.console import Console

    watcher = Watcher(folders)
    mirror = _mirror() if tensorboard else None
    runs = watcher.look()
    console = Console()
    if once or not console.is_terminal:
        if mirror is not None:
            mirror(watcher.folders)
        sys.stdout.write(plain(runs))
        return
    try:
        _live(console, watcher, every, mirror)
    except (KeyboardInterrupt, Stopped):  # Ctrl-C is how one leaves; nothing is lost
        return


def _mirror() -> Callable[[Sequence[Path]], None]:
    from vshift.live.board import Mirror

    mirror = Mirror()
    return lambda folders: mirror.update(find_runs(folders))


def _live(
    console: Console,
    watcher: Watcher,
    every: float,
    mirror: Callable[[Sequence[Path]], None] | None,
) -> None:
    from rich.live import Live

    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(table(watcher.look(), console.width, console.height), refresh=True)
            if mirror is not None:
                mirror(watcher.folders)
            if pressed(every) in ("q", "Q", "\x1b"):
                return


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Single keys from the terminal, and the terminal as it was afterwards."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, termios.error):
        yield _sleep  # no keyboard: Ctrl-C still leaves
        return

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode("latin-1") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
