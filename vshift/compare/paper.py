"""The paper's own tables, filled with our runs: `--view table3`, `table4`, `table6`, `figure4`.

A published value stands only beside runs of the paper's network on the paper's images, CIFAR-10 or
CIFAR-100, all of them. Whether a run is that is read from its config's values, never from names.
The paper's numbers and recipes are in `published.yaml`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vshift.compare.fields import Fields, metric
from vshift.compare.groups import Group, describe_duplicates, differing, group_by_config
from vshift.compare.statistics import Sample, describe
from vshift.config import block
from vshift.config.data import ImageFolder
from vshift.config.identity import Scope, identity, value_differences
from vshift.config.recalibration import ADJUST
from vshift.config.schema import Config
from vshift.config.yaml12 import parse
from vshift.errors import VShiftError
from vshift.runs.files import Row
from vshift.runs.read import RunRecord, number
from vshift.runs.summary import error_of
from vshift.tables import Column, Table
from vshift.text import (
    NONE,
    escape_control,
    format_number,
    format_spread,
    format_value,
    list_names,
    suggest,
)

_PLACES = {
    "before_last_bn": "(a) before last BN",
    "before_last_conv": "(b) before last conv",
    "before_classifier": "before classifier",
}
_SIGNS = {"dropout": "drop", "uniform": "β"}
_SHOWN = 40  # names in a note


# ---- the paper


@dataclass(frozen=True)
class View:
    """A table of the paper.

    Attributes:
        name: as in `--view`; source: the paper and the table; about: what it shows.
        kind: of noise; levels: its drop rates, or β for uniform noise.
        values: position → data set → network → a value for each level, or the pair.
        lacks: why some of the paper's values are not here; empty where all are.
        adjusted: whether the values are pairs at the one level: as trained, and re-estimated.
    """

    name: str
    source: str
    about: str
    kind: str
    levels: list[float]
    values: dict[str, dict[str, dict[str, list[float]]]]
    lacks: str = ""
    adjusted: bool = False

    @property
    def positions(self) -> tuple[str, ...]:
        return tuple(self.values)

    def published(self, position: str, data: str | None, network: str | None) -> Sequence[float]:
        """The paper's values; () if it has none."""
        return self.values[position].get(data or "", {}).get(network or "", ())


@cache
def _contents() -> Row:
    text = resources.files("vshift.compare").joinpath("published.yaml").read_text("utf-8")
    contents: Row = parse(text, "published.yaml").to_python()
    return contents


def views() -> dict[str, View]:
    """Every view by name."""
    contents = _contents()
    return {
        name: View(**{**view, "name": name, "source": f"{contents['paper']}, {view['source']}"})
        for name, view in contents["views"].items()
    }


@cache
def _recipe(network: str) -> Config:
    """The paper's config of a network, on CIFAR-10, without noise."""
    recipe = _contents()["networks"][network]
    data = {"name": "cifar10", **recipe["data"]}
    return Config.model_validate({"name": network, **recipe, "data": data})


def network_of(config: Config) -> str | None:
    """The paper's network that a config trains, by its layers, not its name; None if none."""
    own = _layers(config.network)
    names = _contents()["networks"]
    return next((name for name in names if _layers(_recipe(name).network) == own), None)


def data_of(config: Config) -> str | None:
    """`cifar10` or `cifar100` if a config uses all of its images; nothing else is the paper's."""
    data = config.data
    whole = data.train_limit is None and data.test_limit is None
    return data.name if data.name in ("cifar10", "cifar100") and whole else None


def other_recipe(config: Config, network: str) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which a config trains differently than the paper, with both values.

    Which data set, the noise, and the arithmetic's precision do not count.
    """
    return value_differences(recipe_of(config), recipe_of(_recipe(network)))


def recipe_of(config: Config) -> Row:
    """The part of a config that is a recipe: without network, data set and arithmetic."""
    values = identity(config.model_dump(exclude={"network", "hardware"}), Scope.TRAINING)
    for key in ("name", "root"):
        values["data"].pop(key, None)
    return values


def _layers(network: Any) -> Row:
    """A network section without its noise, in one form for the several ways to write it."""
    values: Row = network.model_dump(exclude={"noise", "block", "bottleneck"})
    values["order"] = _without_noise(network.order)
    values["is_bottleneck"] = getattr(network, "is_bottleneck", None)
    return values


def _without_noise(order: Sequence[str]) -> list[str]:
    return [word for word in order if not block.is_noise(word)]


def _place_in(view: View, network: Any) -> tuple[str | None, float] | None:
    """Where a network's noise sits and its drop rate or β; (None, 0) without noise.

    None if it is no noise of the view: several entries, another kind or place, not drawn
    elementwise, or not in all blocks and epochs. The place is taken from the block order, so
    `block: … noise bn …` is `before_last_bn` too.
    """
    if not network.order:  # one's own
        return None
    noises = [noise for noise in network.noises if noise.variance]
    if not noises:
        return None if view.adjusted else (None, 0.0)
    noise = noises[0]
    if len(network.noises) > 1 or noise.kind != view.kind or noise.unit != "element":
        return None
    if noise.extent:
        return None
    bare, position = block.parse(" ".join(_without_noise(network.order))), None
    if noise.places == ("before_classifier",):
        position = "before_classifier" if network.order == bare else None
    elif set(noise.places) <= set(block.BLOCK_POSITIONS):
        for each in ("before_last_bn", "before_last_conv"):
            with suppress(ValueError):  # an order without BN has no place before its last one
                position = each if block.place(bare, [[each]]) == network.order else position
    # β of the same noise variance β²/3, where the config gives a rate
    exact = noise.rate if noise.kind == "dropout" else (3 * noise.variance) ** 0.5
    level = round(float(exact), 6)
    if position not in view.positions or (view.adjusted and level not in view.levels):
        return None
    return position, level


# ---- families of our runs


@dataclass
class _Family:
    """Configs that differ in nothing but the noise.

    Attributes:
        config: the first one's.
        runs: (position, level) → seed → run; the position is None where there is no noise.
        label: the network and the data, with what tells it from a family of the same name.
    """

    config: Config
    runs: dict[tuple[str | None, float], dict[int, RunRecord]] = field(default_factory=dict)
    label: tuple[str, str] = ("", "")

    def has(self, position: str) -> bool:
        return any(where == position for where, _ in self.runs)

    @cached_property
    def papers(self) -> tuple[str | None, str | None]:
        """The paper's data set and network that these are."""
        return data_of(self.config), network_of(self.config)

    @cached_property
    def other_recipe(self) -> dict[str, tuple[Any, Any]]:
        """`other_recipe` of the config; {} if the network or the data are not the paper's."""
        data, network = self.papers
        return {} if data is None or network is None else other_recipe(self.config, network)


def _families(groups: Iterable[Group], view: View, notes: list[str]) -> list[_Family]:
    """The families that have noise of the view, with a note on the configs that do not belong."""
    found: dict[str, _Family] = {}
    elsewhere: list[str] = []
    twice: list[tuple[RunRecord, RunRecord]] = []
    for group in groups:
        config, place = None, None
        with suppress(ValidationError):
            if group.runs and group.config:
                config = Config.model_validate({"name": "a", **group.config})
                place = _place_in(view, config.network)
        if config is None or place is None:
            elsewhere += [group.label] if group.runs else []
            continue
        key = json.dumps(family_of(config, trained_only=not view.adjusted), sort_keys=True)
        family = found.setdefault(key, _Family(config))
        cell = family.runs.setdefault(place, {})
        for run in group.runs:
            other = cell.setdefault(run.seed, run)
            if other is not run:  # of two that trained the same, the one that has more measured
                kept, left = (run, other) if len(run.summary) > len(other.summary) else (other, run)
                cell[run.seed] = kept
                twice.append((left, kept))
    notes += describe_duplicates(twice)
    if elsewhere:
        names = list_names(elsewhere, _SHOWN)
        notes.append(f"not in {view.name}, having other noise or places: {names}")
    belonging = [f for f in found.values() if any(map(f.has, view.positions))]
    for family in (family for family in found.values() if family not in belonging):
        clean = dict.fromkeys(r.name for cell in family.runs.values() for r in cell.values())
        text = f"not in {view.name}, having no noise: {list_names(list(clean), _SHOWN)}"
        own, *others = (
            family_of(f.config, trained_only=not view.adjusted) for f in (family, *belonging)
        )
        if others:
            nearest = min((list(value_differences(own, other)) for other in others), key=len)
            text += f"; the runs with noise differ in {list_names(nearest, noun='keys')}"
        notes.append(text)
    _label(belonging)
    return belonging


def family_of(config: Config, *, trained_only: bool) -> Row:
    """The values that a family shares: its training, and how statistics are re-estimated."""
    values = config.model_dump()
    family = {**identity(values, Scope.TRAINING), "network": _layers(config.network)}
    if trained_only:  # what comes after training changes nothing before it
        return family
    values["recalibration"].pop("methods")
    return {**family, "recalibration": values["recalibration"]}


def _label(found: Sequence[_Family]) -> None:
    """Label families by network and data, and by further settings where these are equal."""
    same: dict[tuple[str, str], list[_Family]] = defaultdict(list)
    for family in found:
        network, data = family.config.network, family.config.data
        name = network.size_label
        if network.block is not None and network.noises:  # its order may make it another network
            values = {**network.model_dump(), "block": None, "noise": None}
            order = _without_noise(network.order)
            if order != _without_noise(type(network).model_validate(values).order):
                name += f" ({' '.join(order)})"
        # For images in a folder the folder's name, whatever they were made from.
        images = [
            f"imagefolder {Path(data.root).name}" if isinstance(data, ImageFolder) else data.name
        ]
        images += [f"{data.train_limit:,} train"] if data.train_limit else []
        images += [f"{data.test_limit:,} test"] if data.test_limit else []
        family.label = (name, ", ".join(images))
        same[family.label].append(family)
    for (name, images_label), members in same.items():
        for family in members if len(members) > 1 else []:
            other = members[1] if family is members[0] else members[0]
            one, two = (family_of(f.config, trained_only=False) for f in (other, family))
            pairs = [f"{k}={format_value(v)}" for k, (_, v) in differing(one, two).items()]
            family.label = (f"{name} ({', '.join(pairs[:3])})", images_label)


# ---- the table


@dataclass(frozen=True)
class _Cell:
    """Our error and the paper's in one place of a line; method None is as trained."""

    family: _Family
    line: str  # the noise's place, or the method of re-estimation
    position: str
    level: float
    method: str | None
    published: float | None

    @cached_property
    def runs(self) -> list[RunRecord]:
        """The runs of the position and level; those without noise belong to every position."""
        everywhere = self.family.runs.get((None, self.level), {})
        return list(
            {**everywhere, **self.family.runs.get((self.position, self.level), {})}.values()
        )

    @cached_property
    def sample(self) -> Sample | None:
        errors = (_error(run, self.method) for run in self.runs)
        return describe(error for error in errors if error is not None)


def view_of(fields: Fields, name: str) -> Table:
    """The runs as a table of the paper, with the published line below each of ours that it fits.

    The records are one object per cell.

    Raises:
        VShiftError: there is no such view, or no run belongs to it.
    """
    every = views()
    if name not in every:
        raise VShiftError(
            f"--view {escape_control(name)}: no such view; {suggest(name, every)}"
            f"there are: {', '.join(every)}"
        )
    view, notes = every[name], list[str]()
    found = _families(group_by_config(fields, notes), view, notes)
    if not found:
        raise VShiftError(f"--view {name}: none of these runs belongs there; it shows {view.about}")
    levels = sorted({*view.levels, *(level for family in found for _, level in family.runs)})
    lines = [line for family in found for line in _lines(family, view, levels)]
    heads = ["network", "data", "recalibrated by" if view.adjusted else "position", "test error of"]
    sign = _SIGNS[view.kind]
    for cell in lines[0]:
        if not view.adjusted:
            heads.append(f"{sign} {format_value(round(cell.level, 3))}")
        else:
            what = " after\nrecalibration" if cell.method else f"\n{sign} {cell.level:g}"
            heads.append(f"{_PLACES[cell.position][:3]}{what}")
    rows = [texts for line in lines for texts in _texts(line)]
    shared = [i for i in range(3) if len({row[i] for row in rows}) == 1]
    caption = _caption(view, found)
    if shared:
        caption += f" All rows: {'; '.join(f'{heads[i]} {rows[0][i]}' for i in shared)}."
    table = Table(
        [Column(head, is_text=index < 4) for index, head in enumerate(heads)],
        rows,
        escape_control(caption),
        [_record(view, cell) for line in lines for cell in line if cell.sample or cell.published],
        [escape_control(note) for note in notes],
        labels=4,
        panels=True,
        name=view.name,
    )
    return table.without(shared)


def _lines(family: _Family, view: View, levels: Sequence[float]) -> Iterator[list[_Cell]]:
    """A line for each position, or for each way to re-estimate BN's statistics."""
    values = {position: view.published(position, *family.papers) for position in view.positions}
    if not view.adjusted:
        for position in filter(family.has, view.positions):
            theirs = dict(zip(view.levels, values[position], strict=False))
            place = _PLACES[position]
            yield [_Cell(family, place, position, x, None, theirs.get(x)) for x in levels]
        return
    (level,) = view.levels
    runs = [run for cell in family.runs.values() for run in cell.values()]
    # `precise` first: the reading that most implementations take.
    readings = sorted(ADJUST, key=lambda method: method != "precise")
    measured = [m for m in readings if any(_error(run, m) is not None for run in runs)]
    methods = measured or ["none"]
    for method in methods:
        last = method == methods[-1]  # the paper's line once, below all of ours
        yield [
            _Cell(family, method, position, level, which, value if last else None)
            for position in view.positions
            for which, value in zip((None, method), values[position] or (None, None), strict=True)
        ]


def _error(run: RunRecord, method: str | None) -> float | None:
    """Test error in percent, as trained or with statistics re-estimated after training."""
    if method is None:
        return number(metric(run, "test_error"))
    return error_of(number(run.summary.get(f"test_accuracy_{method}")))


def _texts(line: Sequence[_Cell]) -> Iterator[list[str]]:
    """Our line, and the paper's if it has values here."""
    family, place = line[0].family, line[0].line
    counts = {cell.sample.n for cell in line if cell.sample}
    ours = "ours, other recipe" if family.other_recipe else "ours"
    ours += f" (n={counts.copy().pop()})" if len(counts) == 1 else ""
    texts = []
    for sample in (cell.sample for cell in line):
        with_n = f" (n={sample.n})" if sample and len(counts) > 1 else ""
        texts.append(f"{format_spread(sample.mean, sample.sd)}{with_n}" if sample else NONE)
    labels = list(map(escape_control, family.label))
    yield [*labels, place, ours, *texts]
    if any(cell.published is not None for cell in line):
        place = "Adjust" if line[-1].method else place
        theirs = [format_number(cell.published, 2) for cell in line]
        yield [*labels, place, str(_contents()["cite"]), *theirs]


def _record(view: View, cell: _Cell) -> Row:
    network, data = cell.family.label
    sample = cell.sample
    return {
        "view": view.name,
        "network": network,
        "data": data,
        "kind": view.kind,
        "position": cell.position,
        "level": cell.level,
        "re_estimated": cell.method,
        "n": sample.n if sample else 0,
        "test_error_mean": sample and sample.mean,
        "test_error_sd": sample and sample.sd,
        "published": cell.published,
        "published_in": None if cell.published is None else view.source,
        "other_recipe": list(cell.family.other_recipe),
        "names": list(dict.fromkeys(run.name for run in cell.runs)),
        "seeds": [run.seed for run in cell.runs],
    }


def _caption(view: View, found: Sequence[_Family]) -> str:
    text = (
        f"{view.about[:1].upper()}{view.about[1:]}, in percent: mean ± sample standard deviation."
    )
    if not any(None not in family.papers for family in found):
        return (
            f"{text} No published values: they stand only beside the paper's networks on all of "
            "CIFAR-10 or CIFAR-100 itself."
        )
    text += f" {_contents()['cite']}: {view.source}."
    known = [f.papers for f in found if None not in f.papers]
    if any(not view.published(place, *of) for of in known for place in view.positions):
        text += f" Not all published values are here: {view.lacks}."
    for family in (family for family in found if family.other_recipe):
        pairs = [
            f"{key} {format_value(ours)}, there {format_value(theirs)}"
            for key, (ours, theirs) in family.other_recipe.items()
        ]
        more = f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
        text += f" Other recipe for {', '.join(family.label)}: {'; '.join(pairs[:4])}{more}."
    return text
