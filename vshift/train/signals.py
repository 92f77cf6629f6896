"""SIGINT, SIGTERM and SIGUSR1 ask a run to stop: it ends its step, writes a checkpoint and exits.

SIGINT is Ctrl-C. SIGTERM and SIGUSR1 are what schedulers send before they take a machine away.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from vshift.errors import Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_NUMBERS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
Handler = Callable[[int, FrameType | None], None]


def exit_code(number: int) -> int:
    """130 after Ctrl-C, 143 after SIGTERM; after SIGUSR1 too, which announces the same."""
    return 130 if number == signal.SIGINT else 143


class Request:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        return exit_code(signal.SIGINT if self.number is None else self.number)

    def stop(self) -> Stopped:
        """What to raise where stopping is convenient."""
        return Stopped(self.exit_code, at_once=False)


NEVER = Request()  # for callers to whom no signal matters


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Inside, a signal raises `Stopped` wherever the program is.

    For everything that holds no results in memory. Only SIGINT raises twice: a SIGTERM that follows
    must not disturb the cleaning up.
    """
    request = Request()

    def handle(number: int, _: FrameType | None) -> None:
        first, request.number = not request.asked, number
        if first or number == signal.SIGINT:
            raise Stopped(exit_code(number))

    with _handled_by(handle):
        yield


@contextmanager
def noted(message: str = "", then: Callable[[], None] | None = None) -> Iterator[Request]:
    """Inside, signals are noted, for the program to ask; a second SIGINT raises `Stopped` at once.

    Args:
        message: said on stderr at the first one.
        then: called at the first one.
    """
    request = Request()
    interrupts = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise Stopped(130)
        first, request.number = not request.asked, request.number or number
        if first and message:
            _say(message)
        if first and then:
            then()

    with _handled_by(handle):
        yield request


def _say(message: str) -> None:
    """Past Python's buffers: a handler may have interrupted somebody who is writing there."""
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"{message}\n".encode())


@contextmanager
def _handled_by(handle: Handler) -> Iterator[None]:
    """Install a handler for all three signals and put the old ones back; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
