"""Processes that a sweep starts: when the sweep is asked to stop, so are they, and it waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vshift.train import signals

_PARENT = "VSHIFT_PARENT"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Children:
    """Starts processes until a signal asks to stop."""

    def __init__(self) -> None:
        self.stop = signals.Request()
        self._running: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def listening(self, message: str = "") -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGUSR1 reach every process, and no further one starts.

        Ctrl-C at a terminal reaches the processes without us. They get a SIGTERM all the same: it
        changes nothing for those that are stopping already.
        """
        with signals.noted(message, then=self.end_all) as self.stop:
            yield

    def start(
        self, command: list[str], env: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[bytes] | None:
        """Start a command; None if there is to be no further one.

        A `vshift` among them ends when this process does, see `end_with_parent`.
        """
        if self.stop.asked:
            return None
        env = {**env, _PARENT: str(os.getpid())}
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, **options)
        self._running = [p for p in self._running if p.returncode is None] + [process]
        if self.stop.asked:  # it came while the process was starting
            process.send_signal(signal.SIGTERM)
        return process

    def end_all(self) -> None:
        """Ask every process to write its checkpoint and end."""
        for process in self._running:
            process.send_signal(signal.SIGTERM)


def end_with_parent() -> None:
    """In a process that `Children` started: stop as by SIGTERM as soon as its parent is gone.

    A sweep that is killed with -9 cannot pass that on, and its orphans would fight with the runs of
    the next sweep for cores and GPUs. Linux only; elsewhere the orphans finish, and the next sweep
    leaves their runs to them.
    """
    parent = os.environ.pop(_PARENT, "")  # what this process starts is not the sweep's
    if not parent.isdecimal() or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it was gone before
        os.kill(os.getpid(), signal.SIGTERM)
