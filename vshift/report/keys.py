"""The config keys in which configs differ, and their values as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from vshift.config.identity import Scope, identity
from vshift.report.groups import Group
from vshift.text import NONE, escape_control

Row = dict[str, Any]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A config as dotted keys; lists of sections by index."""
    if isinstance(value, dict) and value:
        pairs = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pairs = [(f"{path}.{i}", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    return {key: item for start, inner in pairs for key, item in flat(inner, start).items()}


def differing(groups: Sequence[Group]) -> tuple[list[str], dict[str, Row]]:
    """The dotted keys in which configs differ, and every config as dotted keys."""
    configs = {g.name: flat(identity(g.config, Scope.EXECUTION)) for g in groups if g.config}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    unlike = [key for key in keys if len({shown(c.get(key)) for c in configs.values()}) > 1]
    # `noise: null` beside `noise: {kind: …}` is one difference, not one a key.
    parents = {key for key in unlike if any(other.startswith(f"{key}.") for other in unlike)}
    return [key for key in unlike if key not in parents], configs


def shown(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return escape_control(value)
    return escape_control(json.dumps(value, ensure_ascii=False, default=str))


def short_key(key: str, keys: Iterable[str]) -> str:
    """`noise.rate` for `network.noise.rate`, as far as that stays unique."""
    parts = key.split(".")
    ends = [other.split(".") for other in keys]
    for length in range(min(2, len(parts)), len(parts)):
        if sum(other[-length:] == parts[-length:] for other in ends) == 1:
            return ".".join(parts[-length:])
    return key
