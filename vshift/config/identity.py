"""Which config keys identify a training, a config or nothing: the only place that says so.

Every key has one `Scope`. The config's hash, the refusal to resume another config's run, the
differences in a table, and the pairing and pooling of runs each keep the keys from one scope on:

    ROUNDING     the same bits       resume, `differences`
    EXECUTION    the same config     `config_hash`, the settings in which rows of a table differ
    TRAINING     the same training   one observation in a test, families of runs, pairs of layouts

Works on the plain mappings that `Config.model_dump()` gives and run folders hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from vshift.config.renames import original

if TYPE_CHECKING:
    from vshift.config.schema import Config


class Scope(IntEnum):
    """What a key changes of a run, from nothing to everything."""

    NOTHING = 0  # what it is called, the study it belongs to, when checkpoints are written
    ROUNDING = 1  # the last bits: how many threads sum
    EXECUTION = 2  # how the same training is computed
    MEASUREMENT = 3  # what is measured of the trained network
    TRAINING = 4  # the trained network


# A key that is not here, or not below one that is, changes the trained network.
SCOPES = {
    "name": Scope.NOTHING,
    "seeds": Scope.NOTHING,  # a run has one; it is compared beside the config
    "grid": Scope.NOTHING,
    "zip": Scope.NOTHING,
    "arms": Scope.NOTHING,
    "checkpoint": Scope.NOTHING,
    "hardware.threads": Scope.ROUNDING,
    "hardware.device": Scope.EXECUTION,
    "hardware.step": Scope.EXECUTION,
    "measure": Scope.MEASUREMENT,
    "recalibration": Scope.MEASUREMENT,
}


def scope_of(key: str) -> Scope:
    """What a dotted key changes: its own entry of SCOPES, or that of the section it lies in."""
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((SCOPES[prefix] for prefix in prefixes if prefix in SCOPES), Scope.TRAINING)


def identity(values: Mapping[str, Any], scope: Scope) -> dict[str, Any]:
    """The keys of a config that have at least this scope, sections without any left out."""
    return _identity(values, scope, "")


def _identity(values: Mapping[str, Any], scope: Scope, path: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{path}{key}"
        if isinstance(value, Mapping) and any(entry.startswith(f"{dotted}.") for entry in SCOPES):
            kept |= {key: inner} if (inner := _identity(value, scope, f"{dotted}.")) else {}
        elif scope_of(dotted) >= scope:
            kept[key] = value
    return kept


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted key and its value, sections included; lists of sections by index."""
    if path:
        yield path, value
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inside = enumerate(value)
    for key, item in inside:
        yield from flat(item, f"{path}.{key}" if path else str(key))


def config_hash(config: Config) -> str:
    """16 hex digits that two configs share if they train and measure the same way.

    Values that are the defaults do not count, and a renamed key counts by its first name: so a
    later version gives old configs their old hash.
    """
    return hash_of(original(config.model_dump(exclude_defaults=True)))


def hash_of(values: Mapping[str, Any]) -> str:
    """The hash of a config given as a mapping, of which every key counts that identifies it."""
    kept = {key: v for key, v in identity(values, Scope.EXECUTION).items() if v != {}}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """dotted key → (value in a, value in b), of the keys that change a run's bits.

    None where a config has no such key. A section that one config lacks is one difference.
    """
    return value_differences(
        identity(a.model_dump(), Scope.ROUNDING), identity(b.model_dump(), Scope.ROUNDING)
    )


def value_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """dotted key → (value in a, value in b) of two mappings of which every key counts."""
    return dict(_differ(a, b, ""))


def _differ(a: Any, b: Any, path: str) -> list[tuple[str, tuple[Any, Any]]]:
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return [] if a == b else [(path, (a, b))]
    found = []
    for key in [*a, *(key for key in b if key not in a)]:
        found += _differ(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    return found
