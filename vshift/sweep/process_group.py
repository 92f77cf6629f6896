"""The processes that a sweep starts: they stop when it is asked to stop, and do not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vshift.train import signals

_PARENT = "VSHIFT_PARENT"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProcessGroup:
    """Starts processes until a signal asks to stop."""

    def __init__(self) -> None:
        self.stop = signals.StopSignal()
        self._running: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def forwarding_signals(self, tell: Callable[[], None]) -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGUSR1 terminate every process, and no more are started.

        Ctrl-C at a terminal reaches the processes directly. They get a SIGTERM all the same: it
        changes nothing for those that are stopping already.

        Args:
            tell: shows a person that the first signal came.
        """
        with signals.catch_stop_signals(tell, then=self.terminate) as self.stop:
            yield

    def start(
        self, command: list[str], env: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[bytes] | None:
        """Start a command; None after a signal asked to stop.

        A `vshift` among them stops when this process ends, see `die_with_parent`.
        """
        if self.stop.requested:
            return None
        env = {**env, _PARENT: str(os.getpid())}
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, **options)
        self._running = [p for p in self._running if p.returncode is None] + [process]
        if self.stop.requested:  # the signal arrived while the process was starting
            process.send_signal(signal.SIGTERM)
        return process

    def terminate(self) -> None:
        """Ask every process to write its checkpoint and exit."""
        for process in self._running:
            process.send_signal(signal.SIGTERM)


def die_with_parent() -> None:
    """In a process that a `ProcessGroup` started: stop, as by SIGTERM, once the parent is gone.

    A sweep killed with -9 cannot forward the signal, and its orphans would compete with the runs
    of the next sweep for cores and GPUs. Linux only; elsewhere the orphans finish, and the next
    sweep skips their runs.
    """
    parent = os.environ.pop(_PARENT, "")  # not for the processes that this one starts
    if not parent.isdecimal() or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # the parent was gone before the call
        os.kill(os.getpid(), signal.SIGTERM)
