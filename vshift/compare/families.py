"""Runs as the paper's tables see them: networks and recipes, each with its noises."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vshift.compare import published
from vshift.compare.fields import Row, listed
from vshift.compare.groups import Group, differing, same_twice
from vshift.compare.published import Noise, View
from vshift.config.identity import Scope, identity
from vshift.config.schema import Config
from vshift.runs.read import RunRecord
from vshift.text import format_value

_LISTED = 3


@dataclass
class Family:
    """Configs that differ in nothing but the noise.

    Attributes:
        config: the first one's.
        runs: (position, level) → seed → run; the position is None where there is no noise.
        label: the network and the data, with what tells it from a family that is called the same.
    """

    config: Config
    runs: dict[tuple[str | None, float], dict[int, RunRecord]] = field(default_factory=dict)
    label: tuple[str, str] = ("", "")

    def at(self, position: str, level: float) -> list[RunRecord]:
        """The runs of a place and level; those without noise belong to every place."""
        return list(
            {**self.runs.get((None, level), {}), **self.runs.get((position, level), {})}.values()
        )

    def has(self, position: str) -> bool:
        return any(where == position for where, _ in self.runs)

    @property
    def levels(self) -> set[float]:
        return {level for _, level in self.runs}

    @cached_property
    def network(self) -> str | None:
        """The paper's network that this is."""
        return published.network_of(self.config)

    @cached_property
    def data(self) -> str | None:
        """The paper's data set that this is."""
        return published.data_of(self.config)

    @property
    def is_the_papers(self) -> bool:
        return self.network is not None and self.data is not None

    @cached_property
    def other_recipe(self) -> dict[str, tuple[Any, Any]]:
        """dotted key → (ours, the paper's); {} too where the network or the data are others."""
        if self.network is None or self.data is None:
            return {}
        return published.other_recipe(self.config, self.network)


def families(groups: Iterable[Group], view: View, notes: list[str]) -> list[Family]:
    """The families that have noise of the view, with a note on the configs that do not belong."""
    found: dict[str, Family] = {}
    elsewhere: list[str] = []
    twice: list[tuple[RunRecord, RunRecord]] = []
    for group in groups:
        config = _config(group)
        noise = published.noise_of(config.network) if config else None
        if config is None or noise is None or not _belongs(noise, view):
            elsewhere += [group.label] if group.used else []
            continue
        family = found.setdefault(_key(config, view), Family(config))
        cell = family.runs.setdefault((noise.position, noise.level), {})
        for run in group.used:
            # Of two that trained the same, the one that more was measured of.
            other = cell.get(run.seed)
            more = other is None or len(run.summary) > len(other.summary)
            cell[run.seed] = run if more else cell[run.seed]
            if other is not None:
                twice.append((other, run) if more else (run, other))
    notes += same_twice(twice)
    if elsewhere:
        notes.append(f"not in {view.name}, having other noise or places: {listed(elsewhere)}")
    kept = [family for family in found.values() if any(map(family.has, view.positions))]
    _label(kept)
    return kept


def _config(group: Group) -> Config | None:
    if not group.used or not group.config:
        return None
    try:
        return Config.model_validate({"name": "a", **group.config})
    except ValidationError:
        return None


def _belongs(noise: Noise, view: View) -> bool:
    if noise.kind is None:
        return not view.adjusted
    in_place = noise.kind == view.kind and noise.position in view.positions
    return in_place and (not view.adjusted or noise.level in view.levels)


def _key(config: Config, view: View) -> str:
    values = _training(config)
    if not view.adjusted:  # what comes after training changes nothing before it
        values.pop("recalibration")
    return json.dumps(values, sort_keys=True)


def _label(found: Sequence[Family]) -> None:
    """Name each by network and data, and where that is not enough by its further settings."""
    for family in found:
        family.label = (_network_label(family.config), _data_label(family.config))
    same: dict[tuple[str, str], list[Family]] = defaultdict(list)
    for family in found:
        same[family.label].append(family)
    for (network, data), members in same.items():
        for family in members if len(members) > 1 else []:
            other = members[1] if family is members[0] else members[0]
            family.label = (f"{network} ({_settings(family, other)})", data)


def _settings(family: Family, other: Family) -> str:
    found = differing(_training(other.config), _training(family.config))
    pairs = [f"{key}={format_value(own)}" for key, (_, own) in found.items()]
    return ", ".join(pairs[:_LISTED])


def _training(config: Config) -> Row:
    """What families differ in: the training, and what their statistics are re-estimated from."""
    values = config.model_dump()
    recalibration = {k: v for k, v in values["recalibration"].items() if k != "methods"}
    values = identity(values, Scope.TRAINING) | {"recalibration": recalibration}
    return {**values, "network": published.layers_of(config.network)}


def _network_label(config: Config) -> str:
    """`preresnet-164`, `wrn-28-10`, `mlp-512-512`."""
    network = config.network
    label = network.size_label
    return label if network.block is None or not network.noises else f"{label}{_block(config)}"


def _block(config: Config) -> str:
    """The block order where it is not the family's own, for that is another network."""
    network = config.network
    own = published.layers_of(
        type(network).model_validate({**network.model_dump(), "block": None, "noise": None})
    )
    order = published.layers_of(network)["order"]
    return "" if own["order"] == order else f" ({' '.join(order)})"


def _data_label(config: Config) -> str:
    """The data set by its name; images in a folder are called by the folder, never by a name that
    they may come from."""
    data = config.data
    label: str = data.name
    if data.name == "imagefolder":
        label += f" {Path(data.root).name}"
    limits = [f"{data.train_limit:,} train" if data.train_limit else ""]
    limits += [f"{data.test_limit:,} test" if data.test_limit else ""]
    return ", ".join([label, *filter(None, limits)])
