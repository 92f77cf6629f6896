"""A config with `arms`, `zip` and `grid` → one config for each combination."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vshift.config.axes import Axis, read_axes
from vshift.config.load import AnyPath, build, folder_name, gather, put
from vshift.config.problems import shorten
from vshift.config.schema import NAME_LENGTH, Config
from vshift.config.tree import Node, clean, plain, show
from vshift.errors import ConfigError

MAX_RUNS = 100_000  # points × seeds
STUDY_KEYS = ("arms", "zip", "grid")  # what makes many configs of one


@dataclass(frozen=True)
class Point:
    """One combination; `assignments` is what it sets, by dotted key, in order.

    `of` names the sections that it was chosen from: of arms, zip and grid those that there are.
    """

    name: str
    config: Config
    assignments: dict[str, Any]
    of: tuple[str, ...] = ()


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
    axes = read_axes({key: node for key, node in sections.items() if node.value not in (None, {})})
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
        ConfigError: if the config has arms, a zip or a grid.
    """
    grid, rows, arms = config.grid or {}, config.zip or {}, config.arms or {}
    names = [name for name, section in (("arms", arms), ("zip", rows), ("grid", grid)) if section]
    if not names:
        return
    count = math.prod(len(values) for values in grid.values()) * max(1, len(arms))
    count *= len(next(iter(rows.values()), [None]))
    first = {**next(iter(arms.values()), {}), **{k: v[0] for k, v in {**rows, **grid}.items()}}
    choice = [f"{name}=null" for name in names]
    choice += [f"{key}={_plain_text(value)}" for key, value in first.items()]
    shown = clean(str(path), 300)
    verb = "name" if arms or len(names) > 1 else "names"
    raise ConfigError(
        f"{shown}: its {' and '.join(names)} {verb} {count:,} combination{'s' * (count != 1)}; "
        f"`vshift sweep {shown}` runs them all; or choose one with "
        f"`{' '.join(f'--set {text}' for text in choice)}`"
    )


def _plain_text(value: Any) -> str:
    """A value for a command line; what needs quoting there is JSON in single quotes."""
    if isinstance(value, (dict, list)):
        return clean(f"'{json.dumps(value)}'", 120)
    return show(value) if not isinstance(value, str) else clean(value, 60)


def _refuse_overruled(sets: Sequence[str], axes: list[Axis]) -> None:
    """What `--set` says of a key that every combination sets would be overruled without a word."""
    always = {s.key for axis in axes for option in axis[:1] for s in option.settings
              if all(s.key in (other.key for other in o.settings) for o in axis)}  # fmt: skip
    keys = [text.partition("=")[0].strip() for text in sets]
    problems = [
        f"--set {clean(key, 60)}: the config's grid, zip or arms set this key in every "
        f"combination; `--set 'grid.{clean(key, 60)}=[…]'` changes what the grid tries, and --set "
        "grid=null, zip=null or arms=null leaves it out"
        for key in keys
        if key in always
    ]
    if problems:
        raise ConfigError(*problems)


def _build_all(tree: Node, axes: list[Axis], of: tuple[str, ...]) -> list[Point]:
    base = tree.value["name"]
    points: list[Point] = []
    problems: dict[str, list[str]] = {}  # with the combinations that have them
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
            for problem in error.problems:
                problems.setdefault(problem, []).append("-".join(o.label for o in options))
    if problems:
        several = math.prod(map(len, axes)) if "arms" in of and len(axes) > 1 else 0
        raise ConfigError(*shorten(_placed(text, of, several) for text, of in problems.items()))
    return points


def _placed(problem: str, labels: list[str], count: int) -> str:
    """What only some arms' combinations have says which: an arm and a grid's value may each be
    right, and together wrong, as no noise and a rate of it."""
    if not 0 < len(labels) < count:
        return problem
    more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    return f"{problem} (in the combination {clean(labels[0], 80)}{more})"


def _named(base: Node, name: str) -> Node:
    """The point's name, unless the config's own is wrong and must be complained about."""
    own = base.value
    return replace(base, value=name) if isinstance(own, str) and own == folder_name(own) else base


def _unique(text: str, taken: set[str]) -> str:
    """A folder name that no other point has, also where a file system ignores case."""
    name = first = folder_name(text)
    for number in itertools.count(2):
        if name.casefold() not in taken:
            break
        name = f"{first[: NAME_LENGTH - 6]}-{number}"
    taken.add(name.casefold())
    return name
