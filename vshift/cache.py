"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """VSHIFT_CACHE if it is set, or the system's place for a user's caches; it may not exist."""
    return Path(os.environ.get("VSHIFT_CACHE") or user_cache_dir("vshift")).expanduser()
