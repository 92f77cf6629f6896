"""One process trains in a run folder at a time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vshift.errors import RunError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

# The lock is on the folder itself: no extra file, and the kernel lets go when the process dies.
_held: dict[Path, int] = {}


def lock(folder: Path) -> None:
    """Hold the folder until `release` or the end of this process; holding it twice is fine.

    Raises:
        RunError: another process holds it. A file system without locks is taken as it is.
    """
    key = folder.resolve()
    release(key)
    if fcntl is None:
        return
    with suppress(OSError):
        descriptor = os.open(key, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunError(
                f"another process is training in {folder}; wait for it, "
                "or choose another --runs-dir"
            ) from error
        except OSError:
            os.close(descriptor)
            return
        _held[key] = descriptor


def release(folder: Path) -> None:
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
