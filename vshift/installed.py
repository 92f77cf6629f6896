"""Whose code a file is: a user's, or that of an installed package."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package, which has a version."""
    standard = Path(sysconfig.get_path("stdlib"))
    own = Path(__file__).parent
    return (
        not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or path.is_relative_to(standard)
        or path.is_relative_to(own)
    )
