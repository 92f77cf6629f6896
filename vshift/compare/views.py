"""The paper's own tables, filled with our runs: `--view table3`, `table4`, `table6`, `figure4`.

A published value stands only beside runs of the paper's network on the paper's images, CIFAR-10 or
CIFAR-100, all of them. Whether a run is that is read from its config's values, never from names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vshift.compare import published
from vshift.compare.families import Family, families
from vshift.compare.fields import Fields, Row, metric
from vshift.compare.groups import by_config, known
from vshift.compare.published import View
from vshift.compare.statistics import Sample, describe
from vshift.config.recalibration import ADJUST
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord, number
from vshift.tables import Column, Table
from vshift.text import (
    NONE,
    did_you_mean,
    escape_control,
    format_number,
    format_spread,
    format_value,
)

_PLACES = {
    "before_last_bn": "(a) before last BN",
    "before_last_conv": "(b) before last conv",
    "before_classifier": "before classifier",
}
_SIGNS = {"dropout": "drop", "uniform": "β"}
_LISTED = 4


@dataclass(frozen=True)
class _Slot:
    """A column's place in the table: which runs, and what of them."""

    position: str
    level: float
    method: str | None = None  # None: as trained

    def sample(self, family: Family) -> Sample | None:
        runs = family.at(self.position, self.level)
        return describe(known(_error(run, self.method) for run in runs))


@dataclass(frozen=True)
class _Line:
    """A line of ours; `theirs` is the paper's beside it, a value or None for each slot."""

    family: Family
    place: str
    slots: list[_Slot]
    theirs: list[float | None]


def view_of(fields: Fields, name: str) -> Table:
    """The runs as a table of the paper, with the published line below each of ours that it fits.

    The records are one object a cell.

    Raises:
        VShiftError: there is no such view, or no run belongs to it.
    """
    view = _named(name)
    notes: list[str] = []
    found = families(by_config(fields, notes), view, notes)
    if not found:
        raise VShiftError(f"--view {name}: none of these runs belongs there; it shows {view.about}")
    levels = sorted({*view.levels, *(level for family in found for level in family.levels)})
    lines = [line for family in found for line in _lines(family, view, levels)]
    heads = ["network", "data", "re-estimated" if view.adjusted else "position", "test error of"]
    heads += _heads(view, lines[0])
    rows = [texts for line in lines for texts in _texts(line)]
    shared = [i for i in range(3) if len({row[i] for row in rows}) == 1]
    caption = _caption(view, found)
    if shared:
        caption += f" All rows: {'; '.join(f'{heads[i]} {rows[0][i]}' for i in shared)}."
    sheet = Table(
        [Column(head, is_text=index < 4) for index, head in enumerate(heads)],
        rows,
        escape_control(caption),
        [record for line in lines for record in _records(line, view)],
        [escape_control(note) for note in notes],
        labels=4,
        panels=True,
    )
    return sheet.without(shared)


def _named(name: str) -> View:
    every = published.views()
    if name not in every:
        hint = did_you_mean(name, every)
        raise VShiftError(
            f"--view {escape_control(name)}: no such view; {hint + ' ' if hint else ''}"
            f"there are: {', '.join(every)}"
        )
    return every[name]


def _lines(family: Family, view: View, levels: Sequence[float]) -> Iterator[_Line]:
    """A line for each position, or for each way to re-estimate BN's statistics."""
    values = {
        position: view.published(position, family.data, family.network)
        for position in view.positions
    }
    if not view.adjusted:
        for position in filter(family.has, view.positions):
            theirs = dict(zip(view.levels, values[position], strict=False))
            slots = [_Slot(position, level) for level in levels]
            place = _PLACES[position]
            yield _Line(family, place, slots, [theirs.get(level) for level in levels])
        return
    (level,) = view.levels
    methods = [method for method in ADJUST if _has(family, method)] or ["none"]
    for method in methods:
        slots = [_Slot(p, level, m) for p in view.positions for m in (None, method)]
        pairs = [value for p in view.positions for value in (values[p] or (None, None))]
        last = method == methods[-1]  # the paper's line once, below all of ours
        yield _Line(family, method, slots, pairs if last else [None] * len(pairs))


def _has(family: Family, method: str) -> bool:
    runs = (run for cell in family.runs.values() for run in cell.values())
    return any(_error(run, method) is not None for run in runs)


def _error(run: RunRecord, method: str | None) -> float | None:
    """Test error in percent, as trained or with statistics re-estimated after training."""
    if method is None:
        return number(metric(run, "test_error"))
    accuracy = number(run.summary.get(f"test_accuracy_{method}"))
    return None if accuracy is None else 100 - accuracy


def _heads(view: View, line: _Line) -> list[str]:
    sign = _SIGNS[view.kind]
    if not view.adjusted:
        return [f"{sign} {format_value(round(slot.level, 3))}" for slot in line.slots]
    return [
        f"{_PLACES[slot.position][:3]}\n"
        + (f"{sign} {slot.level:g}" if slot.method is None else "re-estimated")
        for slot in line.slots
    ]


def _texts(line: _Line) -> Iterator[list[str]]:
    """Our line, and the paper's if it has values here."""
    samples = [slot.sample(line.family) for slot in line.slots]
    counts = {sample.n for sample in samples if sample}
    ours = "ours, other recipe" if line.family.other_recipe else "ours"
    ours += f" (n={counts.copy().pop()})" if len(counts) == 1 else ""
    labels = [*map(escape_control, line.family.label), line.place]
    yield [*labels, ours, *(_cell(sample, len(counts) > 1) for sample in samples)]
    if any(value is not None for value in line.theirs):
        theirs = [format_number(value, 2) for value in line.theirs]
        yield [
            *labels[:2],
            "Adjust" if line.slots[-1].method else line.place,
            published.cite(),
            *theirs,
        ]


def _cell(sample: Sample | None, with_n: bool) -> str:
    if sample is None:
        return NONE
    text = format_spread(sample.mean, sample.sd)
    return f"{text} (n={sample.n})" if with_n else text


def _records(line: _Line, view: View) -> Iterator[Row]:
    network, data = line.family.label
    for slot, theirs in zip(line.slots, line.theirs, strict=True):
        sample = slot.sample(line.family)
        runs = line.family.at(slot.position, slot.level)
        if sample is None and theirs is None:
            continue
        yield {
            "view": view.name,
            "network": network,
            "data": data,
            "kind": view.kind,
            "position": slot.position,
            "level": slot.level,
            "re_estimated": slot.method,
            "n": sample.n if sample else 0,
            "test_error_mean": sample and sample.mean,
            "test_error_sd": sample and sample.sd,
            "published": theirs,
            "published_in": None if theirs is None else view.source,
            "other_recipe": list(line.family.other_recipe),
            "names": list(dict.fromkeys(run.name for run in runs)),
            "seeds": [run.seed for run in runs],
        }


def _caption(view: View, found: Sequence[Family]) -> str:
    text = (
        f"{view.about[:1].upper()}{view.about[1:]}, in percent: mean ± sample standard deviation."
    )
    if not any(family.is_the_papers for family in found):
        return (
            f"{text} No published values: they stand only beside the paper's networks on all of "
            "CIFAR-10 or CIFAR-100 itself."
        )
    text += f" {published.cite()}: {view.source}."
    for family in (family for family in found if family.other_recipe):
        pairs = [
            f"{key} {format_value(ours)}, there {format_value(theirs)}"
            for key, (ours, theirs) in list(family.other_recipe.items())[:_LISTED]
        ]
        more = len(family.other_recipe) - len(pairs)
        text += f" Other recipe for {family.label[0]}, {family.label[1]}: {'; '.join(pairs)}"
        text += f" and {more} more." if more > 0 else "."
    return text
