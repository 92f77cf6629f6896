"""Which config keys identify a training, a config or nothing: the only list of them.

Every key has one `Scope`. The config's hash, the refusal to resume another config's run, the
differences in a table, and the pairing and pooling of runs each use the keys of at least one scope:

    ROUNDING     the same bits       resume, `differences`
    EXECUTION    the same config     `config_hash`, the settings in which rows of a table differ
    TRAINING     the same training   one observation in a test, families of runs, pairs of layouts

Works on the plain mappings that `Config.model_dump()` gives and run folders hold. Keys that have
been renamed are at the end: a user's file is told the new name, an old run folder is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vshift.config.schema import Config


class Scope(IntEnum):
    """How much of a run a key changes, from nothing to everything."""

    NOTHING = 0  # what it is called, the study it belongs to, when checkpoints are written
    ROUNDING = 1  # the last bits: how many threads sum
    EXECUTION = 2  # how the same training is computed
    MEASUREMENT = 3  # what is measured of the trained network
    TRAINING = 4  # the trained network


# A key that is not here, or not below one that is, changes the trained network.
SCOPES = {
    "name": Scope.NOTHING,
    "notes": Scope.NOTHING,
    "seeds": Scope.NOTHING,  # a run has one; it is compared beside the config
    "grid": Scope.NOTHING,
    "zip": Scope.NOTHING,
    "arms": Scope.NOTHING,
    "checkpoint": Scope.NOTHING,
    "data.root": Scope.EXECUTION,  # where a download lies; of an image folder it names the images
    "hardware.threads": Scope.ROUNDING,
    "hardware.deterministic": Scope.ROUNDING,
    "hardware.device": Scope.EXECUTION,
    "hardware.step": Scope.EXECUTION,  # draws other noise: `Fields.training` tells them apart
    "average": Scope.MEASUREMENT,
    "measure": Scope.MEASUREMENT,
    "recalibration": Scope.MEASUREMENT,
}


def scope_of(key: str, section: Mapping[str, Any] | None = None) -> Scope:
    """The scope of a dotted key: its own entry of SCOPES, or that of its section.

    Args:
        section: the values of the key's section, as `data.root` depends on `data.name`.
    """
    if key == "data.root" and section is not None and section.get("name") == "imagefolder":
        return Scope.TRAINING
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((SCOPES[prefix] for prefix in prefixes if prefix in SCOPES), Scope.TRAINING)


def identity(values: Mapping[str, Any], scope: Scope, *, path: str = "") -> dict[str, Any]:
    """The keys that have at least this scope, of a config or of the section whose keys begin with
    `path`; sections without any are left out."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{path}{key}"
        if isinstance(value, Mapping) and any(entry.startswith(f"{dotted}.") for entry in SCOPES):
            kept |= {key: inner} if (inner := identity(value, scope, path=f"{dotted}.")) else {}
        elif scope_of(dotted, values) >= scope:
            kept[key] = value
    return kept


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted key and its value, sections included; lists of sections by index."""
    if path:
        yield path, value
    for key, item in _by_key(value).items():
        yield from flat(item, f"{path}.{key}" if path else str(key))


def _by_key(value: Any) -> Mapping[Any, Any]:
    """What is in a section by key, in a list of sections by index; empty for any other value."""
    if isinstance(value, Mapping):
        return value
    is_of_sections = isinstance(value, list) and any(isinstance(i, Mapping) for i in value)
    return dict(enumerate(value)) if is_of_sections else {}


def config_hash(config: Config) -> str:
    """16 hex digits that two configs share if they train and measure the same way.

    Defaults do not count, and a renamed key counts under its original name, so that a later
    version gives old configs their old hash.
    """
    return hash_of(original(config.model_dump(exclude_defaults=True)))


def hash_of(values: Mapping[str, Any]) -> str:
    """The hash of the keys that identify a config, given as a mapping."""
    kept = identity(short_references(values), Scope.EXECUTION)
    kept = {key: v for key, v in kept.items() if v != {}}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """dotted key → (value in a, value in b), of the keys that change a run's bits.

    None where a config has no such key. A section that one config lacks is one difference.
    """
    one, other = (
        identity(short_references(config.model_dump()), Scope.ROUNDING) for config in (a, b)
    )
    return value_differences(one, other)


def value_differences(
    a: Mapping[str, Any], b: Mapping[str, Any], *, path: str = ""
) -> dict[str, tuple[Any, Any]]:
    """dotted key → (value in a, value in b) of two mappings of which every key counts.

    Lists of sections are compared by index, if they are as long as each other.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*a, *(key for key in b if key not in a)]:
        one, other, dotted = a.get(key), b.get(key), f"{path}{key}"
        inside, inside_other = _by_key(one), _by_key(other)
        are_sections = isinstance(one, Mapping) and isinstance(other, Mapping)
        if are_sections or (inside and inside.keys() == inside_other.keys()):
            found |= value_differences(inside, inside_other, path=f"{dotted}.")
        elif one != other:
            found[dotted] = (one, other)
    if any(f"{path}{key}" in found for key in TAG_KEYS):  # another part has another source
        found.pop(f"{path}source", None)
    return found


# ---- references to parts of one's own

# The keys that hold them: what tells the sections of a union apart.
TAG_KEYS = ("name", "kind")


def is_file_reference(text: Any) -> bool:
    """Whether a value names an object of a file: `my_model.py:MyNet`."""
    module, _, name = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    return module.endswith(".py") and name.isidentifier()


def short_references(value: Any, key: str = "") -> Any:
    """A config or a part of one, as mappings, with files by their names: a part is the same in
    every folder. Its `source` tells files of one name apart.

    Args:
        key: that of the value itself; only below `name` and `kind` there are references.
    """
    if isinstance(value, Mapping):
        return {
            name: item if name == "args" else short_references(item, name)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [short_references(item, key) for item in value]
    is_reference = key in TAG_KEYS and is_file_reference(value)
    return re.split(r"[/\\]", value)[-1] if is_reference else value


# ---- keys that have been renamed, or have another default

# Then and now. In one row of a table they may meet: what `auto` became is told there.
_DEFAULT_PRECISIONS = ("bf16", "auto")

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
    upgraded = dict(values)
    for name, section in _renamed_sections(values):
        if name == "norm" and section.pop("cumulative", False) is True:
            section["momentum"] = None
        upgraded[name] = {RENAMED[name].get(key, key): value for key, value in section.items()}
    return upgraded


def original(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `upgrade`, for the config's hash: neither a rename nor a new default must
    change it."""
    restored = dict(values)
    hardware = restored.get("hardware")
    if isinstance(hardware, Mapping) and hardware.get("precision") in _DEFAULT_PRECISIONS:
        restored["hardware"] = {key: v for key, v in hardware.items() if key != "precision"}
    for name, section in _renamed_sections(values):
        old = {new: key for key, new in RENAMED[name].items() if new != "momentum"}
        if name == "norm" and section.get("momentum", 0) is None:
            del section["momentum"]
            section["cumulative"] = True
        restored[name] = {old.get(key, key): value for key, value in section.items()}
    return restored


def _renamed_sections(values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections that have renamed keys, as new mappings."""
    for name in RENAMED:
        section = values.get(name)
        if not isinstance(section, Mapping):
            continue
        if name != "data" or section.get("name") == "imagefolder":
            yield name, dict(section)
