"""`grid`: dotted keys and lists of values → one config for every combination."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vshift.config.load import AnyPath, build, folder_name, gather, put, split_key
from vshift.config.problems import shorten
from vshift.config.schema import NAME_LENGTH, Config
from vshift.config.tree import Node, clean, plain, show
from vshift.errors import ConfigError

MAX_POINTS = 10_000
_NOT_IN_A_GRID = {
    "name": "every combination gets its own name",
    "seeds": "every combination runs with all `seeds`",
    "grid": "a grid in a grid has no meaning",
    "base": "`base` is read before the grid",
}
Axis = tuple[str, list[str], list[Node]]  # the key as written, its parts, the values to try


@dataclass(frozen=True)
class Point:
    """One combination of a grid; `assignments` is what it sets, by dotted key."""

    name: str
    config: Config
    assignments: dict[str, Any]


def expand(
    path: AnyPath, sets: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Point]:
    """Every combination of a config's grid, validated; a config without a grid is one point.

    Raises:
        ConfigError: each problem once, at the grid entry that causes it.
    """
    tree = gather(path, sets, seeds)
    grid = tree.value.get("grid")
    tree = replace(tree, value={k: v for k, v in tree.value.items() if k != "grid"})
    if grid is None or grid.value in (None, {}):
        config = build(tree)
        return [Point(config.name, config, {})]
    axes = _axes(grid)
    _refuse_too_many(math.prod(len(values) for _, _, values in axes), grid)
    return _build_all(tree, axes)


def refuse_grid(config: Config, path: AnyPath) -> None:
    """For commands that run one config: say how to run all combinations, or how to choose one.

    Raises:
        ConfigError: if the config has a grid.
    """
    if not config.grid:
        return
    count = math.prod(len(values) for values in config.grid.values())
    choice = " ".join(f"--set {key}={_plain_text(v[0])}" for key, v in config.grid.items())
    shown = clean(str(path), 300)
    raise ConfigError(
        f"{shown}: its grid names {count:,} combination{'s' * (count != 1)}; "
        f"`vshift sweep {shown}` runs them all; or choose one with `--set grid=null {choice}`"
    )


def _plain_text(value: Any) -> str:
    """A value for a command line; what needs quoting there is JSON in single quotes."""
    if isinstance(value, (dict, list)):
        return clean(f"'{json.dumps(value)}'", 120)
    return show(value) if not isinstance(value, str) else clean(value, 60)


def _axes(grid: Node) -> list[Axis]:
    """The grid's keys and values; every malformed entry in one error."""
    if not isinstance(grid.value, dict):
        raise ConfigError(
            f"{grid.place}: grid: {show(grid.value)} is not a mapping of dotted keys to lists"
        )
    axes: list[Axis] = []
    problems: list[str] = []
    for key, node in grid.value.items():
        try:
            axes.append(_axis(key, node))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return axes


def _axis(key: str, node: Node) -> Axis:
    where = f"{node.key or node.place}: grid.{clean(key, 60)}"
    parts = split_key(key, node.key or node.place)
    if parts[0] in _NOT_IN_A_GRID:
        raise ConfigError(f"{where}: not in a grid: {_NOT_IN_A_GRID[parts[0]]}")
    if not isinstance(node.value, list):
        raise ConfigError(f"{where}: {show(node.value)} is not a list of values to try")
    if not node.value:
        raise ConfigError(f"{where}: an empty list; give at least one value")
    seen: set[str] = set()
    for value in node.value:
        text = json.dumps(plain(value), sort_keys=True)
        if text in seen:
            raise ConfigError(
                f"{value.place}: grid.{clean(key, 60)}: {show(value.value)} is there twice"
            )
        seen.add(text)
    return key, parts, [replace(value, key=node.key) for value in node.value]


def _refuse_too_many(count: int, grid: Node) -> None:
    if count > MAX_POINTS:
        raise ConfigError(
            f"{grid.place}: grid: {count:,} combinations; at most {MAX_POINTS:,}, take values out"
        )


def _build_all(tree: Node, axes: list[Axis]) -> list[Point]:
    base = tree.value["name"]
    labels = _labels([parts for _, parts, _ in axes])
    points: list[Point] = []
    problems: dict[str, None] = {}
    taken: set[str] = set()
    for values in itertools.product(*(values for _, _, values in axes)):
        parts = [
            f"{label}={_value_text(v)}" for label, v in zip(labels, map(plain, values), strict=True)
        ]
        name = _unique("-".join([str(base.value), *parts]), taken)
        named = replace(tree, value={**tree.value, "name": _named(base, name)})
        try:
            for (_, keys, _), value in zip(axes, values, strict=True):
                named = put(named, keys, value)
            chosen = {key: plain(v) for (key, _, _), v in zip(axes, values, strict=True)}
            points.append(Point(name, build(named), chosen))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(*shorten(problems))
    return points


def _named(base: Node, name: str) -> Node:
    """The point's name, unless the config's own is wrong and must be complained about."""
    own = base.value
    return replace(base, value=name) if isinstance(own, str) and own == folder_name(own) else base


def _labels(keys: list[list[str]]) -> list[str]:
    """The last word of each key (`rate`), or the whole key where two end alike."""
    short = [_last_word(parts) for parts in keys]
    count = Counter(short)
    return [word if count[word] == 1 else ".".join(k) for word, k in zip(short, keys, strict=True)]


def _last_word(parts: list[str]) -> str:
    """`rate`, and `noise.0` for an entry of a list."""
    start = len(parts) - 1
    while start and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])


def _value_text(value: Any) -> str:
    """A value in a folder's name: `0.3`, `true`, `dropout_0.5`."""
    if isinstance(value, (dict, list)):
        return "_".join(_leaves(value)) or "empty"
    return value if isinstance(value, str) else show(value)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    for item in value if isinstance(value, list) else [value]:
        yield from _leaves(item) if isinstance(item, (dict, list)) else [_value_text(item)]


def _unique(text: str, taken: set[str]) -> str:
    """A folder name that no other point has, also where a file system ignores case."""
    name = first = folder_name(text)
    for number in itertools.count(2):
        if name.casefold() not in taken:
            break
        name = f"{first[: NAME_LENGTH - 6]}-{number}"
    taken.add(name.casefold())
    return name
