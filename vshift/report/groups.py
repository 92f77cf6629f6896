"""Runs → groups: the seeds of one config, where its noise sits, and how it is drawn."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from vshift.compare import Comparison
from vshift.compare.fields import active_noise
from vshift.compare.groups import NO_NOISE, Noise
from vshift.runs.read import RunRecord
from vshift.text import escape_control, natural

Row = dict[str, Any]

# Okabe and Ito (2008): hues that people with any kind of colour blindness tell apart; less black,
# which cannot be seen on a dark page, and yellow, which cannot on a white one.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8a8a8a"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# Up to so many configs each has a hue of its own; beyond, a hue is a layout and a shade a strength.
_OWN_HUES = 6


def strengths_in_words(noises: Sequence[Noise]) -> str:
    """`rates 0.1 to 0.7`, `β 0.1 to β 0.5`, from weak to strong."""
    ends = sorted(noises, key=lambda noise: (noise.variance or 0.0, natural(noise.strength)))
    low, high = ends[0].strength, ends[-1].strength
    return f"{'rates ' if low[:1].isdigit() else ''}{low} to {high}"


@dataclass(frozen=True)
class Group:
    """The runs of one config.

    Attributes:
        row: its row of `vshift compare`.
        config: complete, as `vshift compare` reads it; {} where it cannot be read.
        runs: those whose numbers count, one a seed; others: the rest.
        label: its name without what all names begin with.
        observed: (training, seed) of its runs; groups that share it are the same trainings.
    """

    row: Row
    label: str
    config: Row
    runs: list[RunRecord]
    others: list[RunRecord]
    noise: Noise
    is_baseline: bool
    observed: frozenset[tuple[str, int]] = frozenset()
    colour: str = GREY
    shape: str = "circle"

    @property
    def name(self) -> str:
        return str(self.row["label"])


def make_groups(comparison: Comparison) -> list[Group]:
    """A group for each row of the comparison, in its order and of its runs; only those with a run
    that counts are drawn and get a colour."""
    labels = short_labels([str(row["label"]) for row in comparison.rows])
    groups = [
        Group(
            row=row,
            label=label,
            config=found.config,
            runs=found.runs,
            others=found.others,
            noise=found.noise,
            is_baseline=found.label == comparison.baseline,
            observed=found.observed,
        )
        for row, label, found in zip(comparison.rows, labels, comparison.groups, strict=True)
    ]
    return _drawn(groups)


def short_labels(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with, if what is left still is a name."""
    shown = [escape_control(name) for name in names]
    parts = [name.split("-") for name in shown]
    same = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    start = sum(len(column[0]) + 1 for column in same) if len(shown) > 1 else 0
    rests = [name[start:] for name in shown]
    return rests if all(rest[:1].isalpha() for rest in rests) else shown


def entries_of(config: Row) -> list[Row]:
    """The entries of a config's noise that do something."""
    return active_noise(config)


def _drawn(groups: list[Group]) -> list[Group]:
    """The groups with colours and shapes; what has no noise is grey, if anything has noise."""
    if all(group.noise.layout == NO_NOISE for group in groups):
        return _apart(groups)
    layouts = [name for name, _ in Counter(g.noise.layout for g in groups if g.runs).most_common()]
    noisy = sorted((name for name in layouts if name != NO_NOISE), key=natural)
    hues = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(noisy)}
    shapes = {name: SHAPES[1 + i % (len(SHAPES) - 1)] for i, name in enumerate(noisy)}
    coloured = [g for g in groups if g.runs and not _is_grey(g)]
    own = len(coloured) <= _OWN_HUES
    result = []
    for group in groups:
        layout = group.noise.layout
        family = [g for g in groups if g.runs and g.noise.layout == layout]
        if group in coloured and own:
            colour = PALETTE[coloured.index(group)]
        elif group.runs:
            family.sort(key=lambda g: (g.noise.variance or 0.0, natural(g.label)))
            colour = _shade(hues.get(layout, GREY), family.index(group), len(family))
        else:
            colour = GREY
        result.append(replace(group, colour=colour, shape=shapes.get(layout, "circle")))
    return result


def _apart(groups: list[Group]) -> list[Group]:
    """Every group with a hue and a shape; beyond as many as there are hues, in other pairs."""
    places = iter(range(len(groups)))
    result = []
    for group in groups:
        if group.runs and not group.is_baseline:
            i = next(places)
            shape = SHAPES[(i + i // len(PALETTE)) % len(SHAPES)]
            group = replace(group, colour=PALETTE[i % len(PALETTE)], shape=shape)
        result.append(group)
    return result


def _is_grey(group: Group) -> bool:
    return group.is_baseline or group.noise.layout == NO_NOISE


def _shade(colour: str, index: int, count: int) -> str:
    """The index-th of `count` shades from light to dark, all visible on white and on black."""
    if count < 2:
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)
    light = 0.72 - 0.37 * index / (count - 1)
    parts = colorsys.hls_to_rgb(hue, light, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
