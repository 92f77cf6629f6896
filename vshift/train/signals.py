"""SIGINT, SIGTERM and SIGUSR1 ask a run to stop: it ends its step, writes a checkpoint and exits.

SIGINT is Ctrl-C. SIGTERM and SIGUSR1 are what schedulers send before they take a machine away.
The handlers only note the request. `check_stop` of `train_in` (run.py) raises `Stopped` for it
after every step and, through `TrainingContext`, before every batch of an evaluation; the
`Checkpointer` saves on its way out.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vshift.errors import Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_NUMBERS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def exit_code(number: int) -> int:
    """130 after Ctrl-C, 143 after SIGTERM and SIGUSR1, which both announce a preemption."""
    return 130 if number == signal.SIGINT else 143


class StopSignal:
    """Whether a signal has requested a stop, and which one."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        return exit_code(signal.SIGINT if self.number is None else self.number)

    def stopped(self) -> Stopped:
        """The exception that `check_stop` raises between steps and evaluation batches."""
        return Stopped(self.exit_code, at_once=False)


NO_STOP = StopSignal()  # never requested: for callers that handle no signals


_at_once = StopSignal()  # of `stopping_at_once`; signals, too, belong to the whole process


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise `Stopped` on a signal, wherever the program is: for code that holds no results.

    Only SIGINT raises twice: a SIGTERM that follows must not disturb the cleaning up.

    C code that imports a module may clear any exception and leave the module half imported. An
    error that follows is therefore raised as `Stopped` too, and so is the attempt to train.
    """
    _at_once.number = None

    def handle(number: int, _: FrameType | None) -> None:
        first, _at_once.number = not _at_once.requested, number
        if first or number == signal.SIGINT:
            raise Stopped(exit_code(number))

    with _handled_by(dict.fromkeys(_NUMBERS, handle)):
        try:
            yield
        except Exception as error:
            if _at_once.requested:
                raise Stopped(_at_once.exit_code) from error
            raise
        finally:
            _at_once.number = None


@contextmanager
def catch_stop_signals(
    tell: Callable[[], None] | None = None, then: Callable[[], None] | None = None
) -> Iterator[StopSignal]:
    """Record signals for the program to check; a second SIGINT raises `Stopped` at once.

    SIGHUP, a terminal that is closed, is ignored: it ends no run.

    Args:
        tell: shows a person that the first signal came. It has a thread of its own: the handler
            may have interrupted another message, or a display that is being drawn.
        then: called at the first signal.

    Raises:
        Stopped: `stopping_at_once` raised it before, and something cleared it.
    """
    if _at_once.requested:
        raise Stopped(_at_once.exit_code)
    stop = StopSignal()
    teller = threading.Thread(target=tell, daemon=True)
    interrupts = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise Stopped(exit_code(signal.SIGINT))
        first, stop.number = not stop.requested, stop.number or number
        if first:
            teller.start()
            if then:
                then()

    handlers: dict[int, Any] = dict.fromkeys(_NUMBERS, handle)
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = signal.SIG_IGN
    with _handled_by(handlers):
        try:
            yield stop
        finally:
            if teller.is_alive():
                teller.join()


@contextmanager
def _handled_by(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Install handlers of signals, restored on exit; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number, handle in handlers.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
