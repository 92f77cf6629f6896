"""Where the wall time of a run goes: a stopwatch that is always in one of a few phases."""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

from vshift.runs import number
from vshift.runs.schema import TimingRow

Phase = Literal["start", "steps", "test", "measure", "recalibrate", "write"]

# What a terminal shows during each; nothing in steps, which have a bar of their own.
PHASES: dict[Phase, str] = {
    "start": "", "steps": "", "test": "testing", "measure": "measuring",
    "recalibrate": "recalibrating", "write": "writing",
}  # fmt: skip


class Timing:
    """Wall seconds by phase, from the start on; together they are the whole time.

    Args:
        since: `time.perf_counter()` when the command began; by default now.
    """

    def __init__(self, since: float | None = None) -> None:
        self._phase: Phase = "start"
        self._since = time.perf_counter() if since is None else since
        self._seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)

    def enter(self, phase: Phase) -> None:
        """End the present phase and begin another one."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def row(self, earlier: Any = None) -> TimingRow:
        """The seconds so far.

        Args:
            earlier: `timing` in run.json, of the attempts before this one, which is added.
        """
        self.enter(self._phase)
        before = earlier if isinstance(earlier, dict) else {}
        seconds = {p: s + (number(before.get(p)) or 0.0) for p, s in self._seconds.items()}
        share = 100 * seconds["steps"] / max(sum(seconds.values()), 1e-9)
        return TimingRow(**seconds, steps_share=share)
