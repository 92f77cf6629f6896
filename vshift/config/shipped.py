"""The configs that come with vshift, found by name from any folder: `quick`, `studies/positions`.

They are written in `configs/` of the repository; a wheel holds them as `vshift/configs/`.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped() -> dict[str, Path]:
    """Name → path of every folder and file; a file also goes by its name without the ending."""
    inside = _PACKAGE / "configs"
    root = inside if inside.is_dir() else _PACKAGE.parent / "configs"  # a wheel's, or a clone's
    files = sorted(root.glob("*/*.yaml"))
    folders = dict.fromkeys(file.parent for file in files)
    paths = [*folders, *files, *(file.with_suffix("") for file in files)]
    return {
        p.relative_to(root).as_posix(): p if p in folders else p.with_suffix(".yaml") for p in paths
    }


def find_config(path: Path, name: str) -> Path:
    """The path if it exists, else what is shipped under this name, also written `configs/<name>`.

    A folder without configs, as one of runs is, hides nothing. Where there is neither, the path as
    it is.
    """
    is_empty = path.is_dir() and not any(path.glob("*.y*ml"))
    known = shipped() if is_empty or not os.path.lexists(path) else {}
    return known.get(Path(name).as_posix().removeprefix("configs/"), path)
