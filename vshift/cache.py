"""The user's cache folder."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """VSHIFT_CACHE if it is set, or the system's place for a user's caches; it may not exist."""
    return Path(os.environ.get("VSHIFT_CACHE") or user_cache_dir("vshift")).expanduser()


def keep(path: Path, text: str) -> None:
    """Write a cache file, whole or not at all; where that cannot be, nothing is kept.

    Two that write it at once do not meet: each has a temporary file of its own.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
