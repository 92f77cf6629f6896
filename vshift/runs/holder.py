"""Who trains in a run folder, for those who only look."""

from __future__ import annotations

import time
from pathlib import Path

from vshift.runs.lock import OWNER, SILENCE, Owner
from vshift.text import escape_control


def holder(folder: Path) -> str | None:
    """`pid 12 on host` of the live process that holds a folder, None if nobody does.

    It judges as `lock` does, but by this machine's clock, because looking writes nothing. A wrong
    guess does no harm: whoever then trains there asks `lock`.
    """
    path = folder / OWNER
    try:
        content, silent = path.read_bytes(), time.time() - path.stat().st_mtime
    except OSError:
        return None
    owner = Owner.read(content)
    if owner is None:
        return "an unknown process" if silent < SILENCE else None
    elsewhere = owner.machine != Owner.me().machine
    if owner.is_dead or (elsewhere and silent >= SILENCE):
        return None
    return f"pid {owner.pid} on {escape_control(owner.host[:60])}"
