"""Processes that a sweep starts: when the sweep is asked to stop, so are they, and it waits."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vshift import signals


class Children:
    """Starts processes, from any thread, until a signal asks to stop."""

    def __init__(self) -> None:
        self.stop = signals.Request()
        self._running: set[subprocess.Popen[bytes]] = set()

    @contextmanager
    def listening(self, message: str = "") -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGUSR1 reach every process, and no further one starts.

        Ctrl-C at a terminal reaches the processes without us. They get a SIGTERM all the same: it
        changes nothing for those that are stopping already.
        """
        with signals.noted(message, then=self._pass_on) as self.stop:
            yield

    def run(self, command: list[str], **options: Any) -> int | None:
        """Run a command to its end; its exit code, or None if it was not started any more."""
        if self.stop.asked:
            return None
        with subprocess.Popen(command, **options) as process:
            self._running.add(process)
            try:
                if self.stop.asked:  # it came while the process was starting
                    process.send_signal(signal.SIGTERM)
                return process.wait()
            finally:
                self._running.discard(process)

    def _pass_on(self) -> None:
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)
