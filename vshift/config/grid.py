"""`arms` and `grid`: named settings, and dotted keys with lists of values → one config for each.

Both become axes of one product: an axis is a list of options, an option a label and what it sets.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from vshift.config.load import AnyPath, build, folder_name, gather, put, split_key
from vshift.config.problems import shorten
from vshift.config.schema import NAME_LENGTH, Config
from vshift.config.tree import Node, clean, plain, show
from vshift.errors import ConfigError

MAX_POINTS = 10_000
MAX_RUNS = 100_000  # points × seeds
LONGEST_ARM = 60
_NOT_IN_A_GRID = {
    "name": "every combination gets its own name",
    "seeds": "every combination runs with all `seeds`",
    "grid": "a grid in a grid has no meaning",
    "arms": "arms and grid stand side by side",
    "base": "`base` is read before the grid",
}
_NOT_IN_AN_ARM = {
    "name": "every arm gets its own name",
    "seeds": "every arm runs with all `seeds`",
    "grid": "arms and grid stand side by side",
    "arms": "an arm in an arm has no meaning",
    "base": "`base` is read before the arms",
}
STUDY_KEYS = ("arms", "grid")  # what makes many configs of one


class Setting(NamedTuple):
    """A value for a key."""

    key: str  # as written, dotted
    parts: list[str]
    value: Node


@dataclass(frozen=True)
class Option:
    """One choice of an axis: a grid's value, or an arm with all that it sets."""

    label: str
    settings: list[Setting]


Axis = list[Option]
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One combination; `assignments` is what it sets, by dotted key, in order.

    `of` names the sections that it was chosen from: arms, grid, both or none.
    """

    name: str
    config: Config
    assignments: dict[str, Any]
    of: tuple[str, ...] = ()


def expand(
    path: AnyPath, sets: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Point]:
    """Every combination of a config's arms and grid, validated; without them it is one point.

    Raises:
        ConfigError: each problem once, at the entry that causes it.
    """
    tree = gather(path, sets, seeds)
    sections = {key: tree.value[key] for key in STUDY_KEYS if key in tree.value}
    tree = replace(tree, value={k: v for k, v in tree.value.items() if k not in sections})
    axes = _axes({key: node for key, node in sections.items() if node.value not in (None, {})})
    if not axes:
        config = build(tree)
        return [Point(config.name, config, {})]
    _refuse_overruled(sets, axes)
    _refuse_too_many_runs(tree, math.prod(len(axis) for axis in axes))
    of = tuple(key for key, node in sections.items() if node.value is not None)
    return _build_all(tree, axes, of)


def _refuse_too_many_runs(tree: Node, points: int) -> None:
    seeds = tree.value.get("seeds")
    count = len(seeds.value) if seeds and isinstance(seeds.value, list) else 1
    if points * count > MAX_RUNS:
        raise ConfigError(
            f"{seeds.place if seeds else tree.place}: seeds: {points:,} combinations with "
            f"{count:,} seeds are {points * count:,} runs; at most {MAX_RUNS:,}, take some out"
        )


def refuse_study(config: Config, path: AnyPath) -> None:
    """For commands that run one config: say how to run all combinations, or how to choose one.

    Raises:
        ConfigError: if the config has arms or a grid.
    """
    grid, arms = config.grid or {}, config.arms or {}
    if not grid and not arms:
        return
    count = math.prod(len(values) for values in grid.values()) * max(1, len(arms))
    first = {**next(iter(arms.values()), {}), **{key: values[0] for key, values in grid.items()}}
    choice = [f"{name}=null" for name, section in (("arms", arms), ("grid", grid)) if section]
    choice += [f"{key}={_plain_text(value)}" for key, value in first.items()]
    name = " and ".join(name for name, section in (("arms", arms), ("grid", grid)) if section)
    shown = clean(str(path), 300)
    verb = "name" if arms else "names"
    raise ConfigError(
        f"{shown}: its {name} {verb} {count:,} combination{'s' * (count != 1)}; "
        f"`vshift sweep {shown}` runs them all; or choose one with "
        f"`{' '.join(f'--set {text}' for text in choice)}`"
    )


def _plain_text(value: Any) -> str:
    """A value for a command line; what needs quoting there is JSON in single quotes."""
    if isinstance(value, (dict, list)):
        return clean(f"'{json.dumps(value)}'", 120)
    return show(value) if not isinstance(value, str) else clean(value, 60)


def _axes(sections: dict[str, Node]) -> list[Axis]:
    """The arms as one axis, then one for each key of the grid; all malformed entries in one error.

    Raises:
        ConfigError: those, or too many combinations.
    """
    problems: list[str] = []
    arms = _entries(sections.get("arms"), "arms: {} is not a mapping of names to arms")
    grid = _entries(sections.get("grid"), "grid: {} is not a mapping of dotted keys to lists")
    options = _all(_arm, arms, problems)
    values = _all(_values, grid, problems)
    if problems:
        raise ConfigError(*problems)
    axes = [*([options] if options else []), *_grid_axes(values)]
    _refuse_both(options, values)
    count = math.prod(len(axis) for axis in axes)
    if count > MAX_POINTS:
        name, node = list(sections.items())[-1]
        raise ConfigError(
            f"{node.place}: {name}: {count:,} combinations; at most {MAX_POINTS:,}, take values out"
        )
    return axes


def _entries(section: Node | None, complaint: str) -> dict[str, Node]:
    if section is None:
        return {}
    if not isinstance(section.value, dict):
        raise ConfigError(f"{section.place}: {complaint.format(show(section.value))}")
    return section.value


def _all(read: Callable[[str, Node], T], entries: dict[str, Node], problems: list[str]) -> list[T]:
    """What every entry says; what is wrong with one goes into `problems`."""
    found: list[T] = []
    for key, node in entries.items():
        try:
            found.append(read(key, node))
        except ConfigError as error:
            problems += error.problems
    return found


def _arm(name: str, node: Node) -> Option:
    where = f"{node.key or node.place}: arms.{clean(name, 60)}"
    if name != folder_name(name) or len(name) > LONGEST_ARM:
        raise ConfigError(
            f"{where}: an arm's name becomes part of a folder's: letters, digits, and . _ = + - "
            f"after the first, at most {LONGEST_ARM}"
        )
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"{where}: {show(node.value)} is not a mapping of dotted keys to values; "
            "an arm that changes nothing is {}"
        )
    problems: list[str] = []
    settings = _all(lambda key, value: _setting(key, value, where), node.value, problems)
    if problems:
        raise ConfigError(*problems)
    return Option(name, settings)


def _setting(key: str, node: Node, arm: str) -> Setting:
    place = node.key or node.place
    parts = split_key(key, place)
    if parts[0] in _NOT_IN_AN_ARM:
        name = arm.partition(": ")[2]
        raise ConfigError(
            f"{place}: {name}.{clean(key, 60)}: not in an arm: {_NOT_IN_AN_ARM[parts[0]]}"
        )
    return Setting(key, parts, node)


def _values(key: str, node: Node) -> list[Setting]:
    """What a grid tries for a key."""
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
    return [Setting(key, parts, replace(value, key=node.key)) for value in node.value]


def _grid_axes(axes: list[list[Setting]]) -> list[Axis]:
    """Grid values as options labelled `rate=0.3`."""
    labels = _labels([values[0].parts for values in axes])
    return [
        [Option(f"{label}={_value_text(plain(s.value))}", [s]) for s in values]
        for label, values in zip(labels, axes, strict=True)
    ]


def _refuse_both(arms: list[Option], grid: list[list[Setting]]) -> None:
    """A key that an arm and the grid both set would be the grid's in every arm."""
    own = {setting.key: arm.label for arm in arms for setting in arm.settings}
    problems = [
        f"{values[0].value.key or values[0].value.place}: grid.{clean(values[0].key, 60)}: the arm "
        f"{own[values[0].key]} sets it too; give it in one of the two"
        for values in grid
        if values[0].key in own
    ]
    if problems:
        raise ConfigError(*problems)


def _refuse_overruled(sets: Sequence[str], axes: list[Axis]) -> None:
    """What `--set` says of a key that every combination sets would be overruled without a word."""
    always = {s.key for axis in axes for option in axis[:1] for s in option.settings
              if all(s.key in (other.key for other in o.settings) for o in axis)}  # fmt: skip
    keys = [text.partition("=")[0].strip() for text in sets]
    problems = [
        f"--set {clean(key, 60)}: the config's grid or arms set this key in every combination; "
        f"`--set 'grid.{clean(key, 60)}=[…]'` changes what the grid tries, and --set grid=null or "
        "arms=null leaves it out"
        for key in keys
        if key in always
    ]
    if problems:
        raise ConfigError(*problems)


def _build_all(tree: Node, axes: list[Axis], of: tuple[str, ...]) -> list[Point]:
    base = tree.value["name"]
    points: list[Point] = []
    problems: dict[str, None] = {}
    taken: set[str] = set()
    for options in itertools.product(*axes):
        name = _unique("-".join([str(base.value), *(o.label for o in options)]), taken)
        point = replace(tree, value={**tree.value, "name": _named(base, name)})
        settings = [setting for option in options for setting in option.settings]
        try:
            for _, parts, value in settings:
                point = put(point, parts, value)
            points.append(Point(name, build(point), {k: plain(v) for k, _, v in settings}, of))
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
