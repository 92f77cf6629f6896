"""Keys that have been renamed: a user's file is told the new name, an old run folder is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By section: the old name → PyTorch's, or one that says more. `train` and `test` of an imagefolder
# only: in shapes they are numbers of images. `cumulative: true` is `momentum: null`, as in PyTorch.
RENAMED = {
    "data": {"train": "train_folder", "test": "test_folder"},
    "norm": {
        "cumulative": "momentum",
        "update": "update_running_stats",
        "evaluate": "eval_statistics",
    },
    "schedule": {
        "rise": "pct_start",
        "start_divisor": "div_factor",
        "end_divisor": "final_div_factor",
    },
    "recalibration": {"own": "batch_weight"},
}


def new_name(key: str) -> str:
    """The dotted key of today for `schedule.rise`; empty for a key that was never renamed."""
    section, _, name = key.partition(".")
    new = RENAMED.get(section, {}).get(name)
    return f"{section}.{new}" if new else ""


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as any earlier version wrote it, with today's names."""
    return {key: _upgrade(key, value) for key, value in values.items()}


def original(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `upgrade`, for the config's hash: a rename must not change it."""
    return {key: _original(key, value) for key, value in values.items()}


def _upgrade(name: str, section: Any) -> Any:
    if not _has_renames(name, section):
        return section
    if name == "norm" and "cumulative" in section:
        section = dict(section)
        if section.pop("cumulative") is True:
            section["momentum"] = None
    return {RENAMED[name].get(key, key): value for key, value in section.items()}


def _original(name: str, section: Any) -> Any:
    if not _has_renames(name, section):
        return section
    old = {new: key for key, new in RENAMED[name].items() if new != "momentum"}
    section = {old.get(key, key): value for key, value in section.items()}
    if name == "norm" and section.get("momentum", 0) is None:
        del section["momentum"]
        section["cumulative"] = True
    return section


def _has_renames(name: str, section: Any) -> bool:
    if name == "data" and isinstance(section, Mapping) and section.get("name") != "imagefolder":
        return False
    return name in RENAMED and isinstance(section, Mapping)
