"""What `arms`, `zip` and `grid` say, as axes of one product: an axis is a list of options.

The arms are one axis, the lists of `zip` together one, each key of the grid one of its own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from vshift.config.load import folder_name, split_key
from vshift.config.tree import Node, clean, plain, show
from vshift.errors import ConfigError

MAX_POINTS = 10_000
LONGEST_ARM = 60
_NOT_IN_A_GRID = {
    "name": "every combination gets its own name",
    "seeds": "every combination runs with all `seeds`",
    "grid": "a grid in a grid has no meaning",
    "arms": "arms and grid stand side by side",
    "zip": "zip and grid stand side by side",
    "base": "`base` is read before the grid",
}
_NOT_IN_A_ZIP = {
    "name": "every row gets its own name",
    "seeds": "every row runs with all `seeds`",
    "grid": "zip and grid stand side by side",
    "arms": "arms and zip stand side by side",
    "zip": "a zip in a zip has no meaning",
    "base": "`base` is read before the zip",
}
_NOT_IN_AN_ARM = {
    "name": "every arm gets its own name",
    "seeds": "every arm runs with all `seeds`",
    "grid": "arms and grid stand side by side",
    "arms": "an arm in an arm has no meaning",
    "zip": "arms and zip stand side by side",
    "base": "`base` is read before the arms",
}


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


def read_axes(sections: dict[str, Node]) -> list[Axis]:
    """The arms as one axis, the zip as one, then one for each key of the grid.

    Raises:
        ConfigError: all malformed entries in one error, or too many combinations.
    """
    problems: list[str] = []
    arms = _entries(sections.get("arms"), "arms: {} is not a mapping of names to arms")
    zipped = _entries(sections.get("zip"), "zip: {} is not a mapping of dotted keys to lists")
    grid = _entries(sections.get("grid"), "grid: {} is not a mapping of dotted keys to lists")
    options = _all(_arm, arms, problems)
    columns = _all(_column, zipped, problems)
    values = _all(_values, grid, problems)
    problems += _not_in_step(columns)
    if problems:
        raise ConfigError(*problems)
    _refuse_both(options, columns, values)
    labels = iter(_labels([settings[0].parts for settings in (*columns, *values)]))
    axes = [options] if options else []
    axes += [_rows([_options(next(labels), column) for column in columns])] if columns else []
    axes += [_options(next(labels), settings) for settings in values]
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
    settings = _list("grid", key, node, _NOT_IN_A_GRID)
    _refuse_twice(f"grid.{clean(key, 60)}", [([s.value], s.value) for s in settings])
    return settings


def _column(key: str, node: Node) -> list[Setting]:
    """What a zip sets a key to, row by row."""
    return _list("zip", key, node, _NOT_IN_A_ZIP)


def _list(section: str, key: str, node: Node, forbidden: dict[str, str]) -> list[Setting]:
    where = f"{node.key or node.place}: {section}.{clean(key, 60)}"
    parts = split_key(key, node.key or node.place)
    if parts[0] in forbidden:
        raise ConfigError(f"{where}: not in a {section}: {forbidden[parts[0]]}")
    if not isinstance(node.value, list):
        raise ConfigError(f"{where}: {show(node.value)} is not a list of values to try")
    if not node.value:
        raise ConfigError(f"{where}: an empty list; give at least one value")
    return [Setting(key, parts, replace(value, key=node.key)) for value in node.value]


def _refuse_twice(what: str, rows: list[tuple[list[Node], Node]]) -> None:
    """Two equal rows would be one run under two names."""
    seen: set[str] = set()
    for row, first in rows:
        text = json.dumps([plain(node) for node in row], sort_keys=True)
        if text in seen:
            shown = " with ".join(show(node.value) for node in row)
            raise ConfigError(f"{first.place}: {what}: {shown} is there twice")
        seen.add(text)


def _not_in_step(columns: list[list[Setting]]) -> list[str]:
    """Lists of a zip that are longer or shorter than its first, and rows that are there twice."""
    if not columns:
        return []
    first, length = clean(columns[0][0].key, 60), len(columns[0])
    problems = [
        f"{_place(column)}: zip.{clean(column[0].key, 60)}: {len(column)} "
        f"value{'s' * (len(column) != 1)}, and zip.{first} has {length}; the lists of a zip go in "
        "step, the first value with the first value"
        for column in columns[1:]
        if len(column) != length
    ]
    if problems:
        return problems
    rows = [[setting.value for setting in row] for row in zip(*columns, strict=True)]
    try:
        _refuse_twice("zip", [(row, row[0]) for row in rows])
    except ConfigError as error:
        return list(error.problems)
    return []


def _place(settings: list[Setting]) -> object:
    """Where a list's key stands."""
    return settings[0].value.key or settings[0].value.place


def _options(label: str, settings: list[Setting]) -> Axis:
    """Values as options labelled `rate=0.3`."""
    return [Option(f"{label}={_value_text(plain(s.value))}", [s]) for s in settings]


def _rows(columns: list[Axis]) -> Axis:
    """The columns of a zip as one axis, labelled `depth=20-epochs=5`."""
    return [
        Option("-".join(o.label for o in row), [s for o in row for s in o.settings])
        for row in zip(*columns, strict=True)
    ]


def _refuse_both(
    arms: list[Option], columns: list[list[Setting]], grid: list[list[Setting]]
) -> None:
    """A key that two sections set would be the later one's, without a word."""
    own = {setting.key: f"the arm {arm.label}" for arm in arms for setting in arm.settings}
    problems = []
    for section, lists in (("zip", columns), ("grid", grid)):
        for settings in lists:
            key = settings[0].key
            if key in own:
                problems.append(
                    f"{_place(settings)}: {section}.{clean(key, 60)}: {own[key]} sets it too; give "
                    "it in one of the two"
                )
            own.setdefault(key, f"the {section}")
    if problems:
        raise ConfigError(*problems)


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
