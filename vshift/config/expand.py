"""A config with `arms`, `zip` and `grid` → one config for each combination.

What they say becomes the axes of one product; an axis is a list of options. The arms are one axis,
the lists of `zip` together one, each key of the grid one of its own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vshift.config.identity import short_references
from vshift.config.load import AnyPath, build, folder_name, gather, put, split_key
from vshift.config.problems import shorten
from vshift.config.schema import FILE_KEYS, NAME_LENGTH, Config
from vshift.config.yaml12 import Node
from vshift.errors import ConfigError
from vshift.text import list_names, one_line, pluralize, show_value

MAX_RUNS = 100_000  # points × seeds
MAX_POINTS = 10_000
LONGEST_ARM = 60
STUDY_KEYS = ("arms", "zip", "grid")  # what makes many configs of one
_MEMBERS = {"arms": "an arm", "zip": "a zip", "grid": "a grid"}
_OPTIONS = {"arms": "arm", "zip": "row", "grid": "combination"}


@dataclass(frozen=True)
class Point:
    """One combination; `assignments` is what it sets, by dotted key, in order.

    `of` names the sections that it was chosen from: of arms, zip and grid those that there are.
    """

    name: str
    config: Config
    assignments: dict[str, Any]
    of: tuple[str, ...] = ()


class _Setting(NamedTuple):
    """A value for a key."""

    key: str  # dotted, as written
    parts: list[str]
    value: Node


class _Option(NamedTuple):
    """A choice of an axis: a grid's value, a zip's row, or an arm with all that it sets."""

    label: str
    settings: list[_Setting]


class _Choices(NamedTuple):
    """A key of the zip or the grid, with its values."""

    key: str
    parts: list[str]
    values: list[Node]


_Axis = list[_Option]


def expand(
    path: AnyPath, sets: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Point]:
    """Every combination of a config's arms, zip and grid, validated; without them it is one point.

    Raises:
        ConfigError: each problem once, at the entry that causes it.
    """
    tree = gather(path, sets, seeds)
    sections = {key: tree.value[key] for key in STUDY_KEYS if key in tree.value}
    tree = replace(tree, value={k: v for k, v in tree.value.items() if k not in sections})
    axes = _read_axes({key: node for key, node in sections.items() if node.value not in (None, {})})
    if not axes:
        config = build(tree)
        return [Point(config.name, config, {})]
    _refuse_overruled(sets, axes)
    points, seed_list = math.prod(map(len, axes)), tree.value.get("seeds", tree)
    count = len(seed_list.value) if isinstance(seed_list.value, list) else 1
    if points * count > MAX_RUNS:
        raise ConfigError(
            f"{seed_list.location}: seeds: {points:,} combinations with {count:,} seeds are "
            f"{points * count:,} runs; at most {MAX_RUNS:,}, take some out"
        )
    of = tuple(key for key, node in sections.items() if node.value is not None)
    return _build_all(tree, axes, of)


def refuse_study(config: Config, path: AnyPath) -> None:
    """For commands that run one config: say how to run all combinations, or how to choose one.

    Raises:
        ConfigError: if the config has arms, a zip or a grid.
    """
    grid, rows, arms = config.grid or {}, config.zip or {}, config.arms or {}
    names = [key for key in STUDY_KEYS if getattr(config, key)]
    if not names:
        return
    count = math.prod(len(values) for values in grid.values()) * max(1, len(arms))
    count *= len(next(iter(rows.values()), [None]))
    first = {**next(iter(arms.values()), {}), **{k: v[0] for k, v in {**rows, **grid}.items()}}
    choice = [f"{name}=null" for name in names]
    for key, value in first.items():  # what needs quoting for a shell is JSON in single quotes
        text = show_value(value) if not isinstance(value, str) else one_line(value, 60)
        if isinstance(value, dict | list):
            text = one_line(f"'{json.dumps(value)}'", 120)
        choice.append(f"{key}={text}")
    shown = one_line(str(path), 300)
    verb = "name" if arms or len(names) > 1 else "names"
    raise ConfigError(
        f"{shown}: its {' and '.join(names)} {verb} {pluralize(count, 'combination')}; "
        f"`vshift sweep {shown}` runs them all; or choose one with "
        f"`{' '.join(f'--set {text}' for text in choice)}`"
    )


# ---- arms, zip and grid as axes


def _read_axes(sections: dict[str, Node]) -> list[_Axis]:
    """The arms as one axis, the zip as one, then one for each key of the grid.

    Raises:
        ConfigError: all malformed entries in one error, or too many combinations.
    """
    problems: list[str] = []
    arms = _read_arms(sections, problems)
    columns = _read_choices(sections, "zip", problems)
    grid = _read_choices(sections, "grid", problems)
    for choices in grid:
        problems += _repeated(f"grid.{one_line(choices.key, 60)}", [[v] for v in choices.values])
    if columns:
        first, length = one_line(columns[0].key, 60), len(columns[0].values)
        unequal = [
            f"{column.values[0].start}: zip.{one_line(column.key, 60)}: "
            f"{pluralize(len(column.values), 'value')}, and zip.{first} has {length:,}; the lists "
            "of a zip go in step, the first value with the first value"
            for column in columns[1:]
            if len(column.values) != length
        ]
        together = zip(*(column.values for column in columns), strict=False)
        problems += unequal or _repeated("zip", [list(row) for row in together])
    problems = problems or _set_twice(arms, columns, grid)
    if problems:
        raise ConfigError(*problems)
    labelled = _labelled([*columns, *grid])
    rows = [
        _Option("-".join(o.label for o in row), [s for o in row for s in o.settings])
        for row in zip(*labelled[: len(columns)], strict=True)
    ]
    axes = [*filter(None, (arms, rows)), *labelled[len(columns) :]]
    count = math.prod(map(len, axes))
    if count > MAX_POINTS:
        name, node = list(sections.items())[-1]
        what = f"{count:,} combinations; at most {MAX_POINTS:,}, take values out"
        raise ConfigError(f"{node.location}: {name}: {what}")
    return axes


def _read_arms(sections: dict[str, Node], problems: list[str]) -> _Axis:
    arms: _Axis = []
    for name, node in _entries(sections, "arms", "names to arms").items():
        key = f"arms.{one_line(name, 60)}"
        if name != folder_name(name) or len(name) > LONGEST_ARM:
            problems.append(
                f"{node.start}: {key}: an arm's name becomes part of a folder's: letters, digits, "
                f"and . _ = + - after the first, at most {LONGEST_ARM}"
            )
        elif not isinstance(node.value, dict):
            problems.append(
                f"{node.start}: {key}: {show_value(node.value)} is not a mapping of dotted keys to "
                "values; an arm that changes nothing is {}"
            )
        else:
            entries = node.value.items()
            parts = {own: _parts("arms", key, own, value, problems) for own, value in entries}
            settings = [_Setting(own, parts[own], value) for own, value in entries]
            arms.append(_Option(name, settings))
    return arms


def _read_choices(sections: dict[str, Node], name: str, problems: list[str]) -> list[_Choices]:
    """The values that a grid tries per key, or a zip sets together, row by row."""
    found = []
    for key, node in _entries(sections, name, "dotted keys to lists").items():
        where = f"{node.start}: {name}.{one_line(key, 60)}"
        parts = _parts(name, name, key, node, problems)
        if not parts:
            continue
        if not isinstance(node.value, list):
            problems.append(f"{where}: {show_value(node.value)} is not a list of values to try")
        elif not node.value:
            problems.append(f"{where}: an empty list; give at least one value")
        else:
            values = [replace(value, key=node.key) for value in node.value]
            found.append(_Choices(key, parts, values))
    return found


def _entries(sections: dict[str, Node], name: str, content: str) -> dict[str, Node]:
    section = sections.get(name)
    if section is None:
        return {}
    if not isinstance(section.value, dict):
        what = f"{show_value(section.value)} is not a mapping of {content}"
        raise ConfigError(f"{section.location}: {name}: {what}")
    return section.value


def _parts(section: str, above: str, key: str, node: Node, problems: list[str]) -> list[str]:
    """The parts of a key that a section sets; empty, with a problem, if it must not."""
    try:
        parts = split_key(key, node.start)
    except ConfigError as error:
        problems += error.problems
        return []
    option, member = _OPTIONS[section], _MEMBERS[section]
    both = " and ".join(name for name in STUDY_KEYS if name in (section, parts[0]))
    why = {
        "name": f"every {option} gets its own name",
        "seeds": f"every {option} runs with all `seeds`",
        **{key: f"`{key}` is read before the {section}" for key in FILE_KEYS},
        **dict.fromkeys(STUDY_KEYS, f"{both} stand side by side"),
        section: f"{member} in {member} has no meaning",
    }.get(parts[0])
    if why is None:
        return parts
    problems.append(f"{node.start}: {above}.{one_line(key, 60)}: not in {member}: {why}")
    return []


def _repeated(what: str, rows: list[list[Node]]) -> list[str]:
    """Two equal rows would be one run under two names: the first such pair."""
    seen: set[str] = set()
    for row in rows:
        text = json.dumps([node.to_python() for node in row], sort_keys=True)
        if text in seen:
            shown = " with ".join(show_value(node.value) for node in row)
            return [f"{row[0].location}: {what}: {shown} is listed twice"]
        seen.add(text)
    return []


def _set_twice(arms: _Axis, columns: list[_Choices], grid: list[_Choices]) -> list[str]:
    """Keys that two sections set: the later section would silently win."""
    setter = {setting.key: f"the arm {arm.label}" for arm in arms for setting in arm.settings}
    problems = []
    for section, lists in (("zip", columns), ("grid", grid)):
        for key, _, values in lists:
            if key in setter:
                where = f"{values[0].start}: {section}.{one_line(key, 60)}"
                problems.append(f"{where}: {setter[key]} sets it too; give it in one of the two")
            setter.setdefault(key, f"the {section}")
    return problems


def _labelled(choices: list[_Choices]) -> list[_Axis]:
    """The values of each key as options such as `rate=0.3`, `noise=dropout_0.5`.

    The label has the last word of a key (`rate`; `noise.0` for an entry of a list), or the whole
    key where two end alike.
    """
    short = []
    for choice in choices:
        words = list(itertools.dropwhile(str.isdigit, reversed(choice.parts)))
        short.append(".".join(choice.parts[max(0, len(words) - 1) :]))
    axes = []
    for word, (key, parts, nodes) in zip(short, choices, strict=True):
        label = word if short.count(word) == 1 else key
        values = [short_references(node.to_python(), parts[-1]) for node in nodes]
        texts = [v if isinstance(v, str) else "_".join(_leaves(v)) or "empty" for v in values]
        axes.append(
            [
                _Option(f"{label}={text}", [_Setting(key, parts, node)])
                for text, node in zip(texts, nodes, strict=True)
            ]
        )
    return axes


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value if isinstance(value, str) else show_value(value)


# ---- the product of the axes


def _refuse_overruled(sets: Sequence[str], axes: list[_Axis]) -> None:
    """A `--set` of a key that every combination sets would silently have no effect."""
    keys = [[{setting.key for setting in option.settings} for option in axis] for axis in axes]
    always = set().union(*(set.intersection(*options) for options in keys))
    problems = [
        f"--set {one_line(key, 60)}: the config's grid, zip or arms set this key in every "
        f"combination; `--set 'grid.{one_line(key, 60)}=[…]'` changes what the grid tries, and "
        "--set grid=null, zip=null or arms=null leaves it out"
        for key in (text.partition("=")[0].strip() for text in sets)
        if key in always
    ]
    if problems:
        raise ConfigError(*problems)


def _build_all(tree: Node, axes: list[_Axis], of: tuple[str, ...]) -> list[Point]:
    base: Node = tree.value["name"]
    # A name that is wrong itself is kept, to be complained about.
    rename = isinstance(base.value, str) and base.value == folder_name(base.value)
    points: list[Point] = []
    problems: dict[str, list[str]] = defaultdict(list)  # with the combinations that have them
    taken: set[str] = set()
    for options in itertools.product(*axes):
        label = "-".join(option.label for option in options)
        name = first = folder_name(f"{base.value}-{label}")
        for number in itertools.count(2):
            if name.casefold() not in taken:  # also where a file system ignores case
                break
            name = f"{first[: NAME_LENGTH - 6]}-{number}"
        taken.add(name.casefold())
        point = put(tree, ["name"], replace(base, value=name)) if rename else tree
        settings = [setting for option in options for setting in option.settings]
        try:
            for _, parts, value in settings:
                point = put(point, parts, value)
            assignments = {key: value.to_python() for key, _, value in settings}
            points.append(Point(name, build(point), assignments, of))
        except ConfigError as error:
            for problem in error.problems:
                problems[problem].append(label)
    if not problems:
        return points
    lines = []
    # An arm and a grid's value may each be right and not fit together, as no noise and a rate of
    # it: a problem names the combinations that have it, if only some have.
    several = "arms" in of and len(axes) > 1
    for problem, labels in problems.items():
        if several and len(labels) < math.prod(map(len, axes)):
            first = list_names([one_line(labels[0], 80), *labels[1:]], 1)
            problem += f" (in the combination {first})"
        lines.append(problem)
    raise ConfigError(*shorten(lines))
