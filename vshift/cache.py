"""The user's cache folder, and what files need that several processes write."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_dir

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]


def cache_folder() -> Path:
    """VSHIFT_CACHE if it is set, or the system's place for a user's caches; it may not exist."""
    return Path(os.environ.get("VSHIFT_CACHE") or user_cache_dir("vshift")).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which replaces `path` on success and is removed on failure.

    Its name is unique, so that processes that write the same file do not disturb each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())  # after a power cut, the new name must not be an empty file
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def keep(path: Path, text: str) -> None:
    """Write a cache file; where that fails, nothing is kept."""
    with suppress(OSError), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_old(folder: Path, pattern: str, age: float = 86400.0) -> None:
    """Remove what killed processes left in a folder, `age` seconds after they last wrote."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(folder: Path, seconds: float = math.inf) -> Iterator[None]:
    """Let one process of this machine in at a time, where the file system can lock.

    This saves work or narrows a race; correctness must not depend on it: it gives up after
    `seconds`, and a forked child that outlives its parent keeps the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + seconds
    try:
        while fcntl and time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
