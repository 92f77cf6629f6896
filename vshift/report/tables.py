"""The page's tables: configs, runs, and what configs differ in, as cells with sort keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vshift.compare.table import device_of
from vshift.report.data import Study
from vshift.report.effects import Effect, against_baseline
from vshift.report.gains import Gain, gains
from vshift.report.groups import Group
from vshift.report.keys import differing, short_key, shown
from vshift.report.layouts import in_words
from vshift.report.prose import amount, p_text, span
from vshift.runs.read import RunRecord, number
from vshift.text import NONE, format_number, format_spread, format_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """`key` is what the column is sorted by: a number, or text where there is none."""

    text: str
    key: float | str | None = None


@dataclass(frozen=True)
class Line:
    """A row; `group` is the label whose colour stands before it, None for none; `about` explains
    the first cell."""

    cells: list[Cell]
    group: Group | None = None
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Heads with a longer explanation each; `numeric` columns stand right."""

    id: str
    heads: list[tuple[str, str]]
    numeric: list[bool]
    lines: list[Line]


def _value(value: Any) -> Cell:
    return Cell(shown(value), number(value) if number(value) is not None else shown(value))


def _number(value: float | None, digits: int) -> Cell:
    return Cell(format_number(value, digits), value)


def _spread(mean: float | None, sd: float | None, digits: int) -> Cell:
    return Cell(format_spread(mean, sd, digits=digits), mean)


def configs_table(study: Study) -> Table:
    """One row a config: scores, difference to the baseline, shift, and its own config keys."""
    effects = {effect.group.label: effect for effect in against_baseline(study)}
    back = {gain.group.label: gain for gain in gains(study)}
    about = in_words(study)
    keys, configs = differing(study.groups)
    error = study.score == "test_error"
    corrected = "p corrected for all rows by Holm; ~ is about how many seeds a config would tell"
    heads = [
        ("config", "name, without what all names begin with; point at one for its layout"),
        ("n", "seeds that are done"),
        ("test error %" if error else "test loss", "last epoch, mean ± sd over seeds"),
        ("difference", "to the baseline"),
        ("95 % CI", "of the difference, Welch"),
        ("more than chance?", f"Welch’s test at 5 %, {corrected}"),
        ("given back", "by recalibration, the first method of the config; mean over seeds"),
        ("95 % CI", "of what was given back: paired t over seeds, each run before and after"),
        ("more than chance?", f"paired t test at 5 %, {corrected}"),
        ("train acc % (eval)", "accuracy on training images in eval mode"),
        ("train acc % (train)", "the same images in train mode: noise on, batch statistics"),
        ("shift mean", "mean over BN layers of the shift ratio"),
        ("shift max", "mean over seeds of each run’s largest over BN layers"),
        ("at", "the layer where a run’s largest is most often"),
        *((short_key(key, keys), key) for key in keys),
    ]
    numeric = [False, *[True] * 4, False, True, True, False, *[True] * 4, False]
    numeric += [
        all(number(c.get(key)) is not None or c.get(key) is None for c in configs.values())
        for key in keys
    ]
    lines = [
        Line(
            _config_cells(study, group, effects.get(group.label), back.get(group.label))
            + [_value(configs.get(group.name, {}).get(key)) for key in keys],
            group,
            about.get(group.label, ""),
        )
        for group in study.groups
    ]
    return _without_empty(Table("configs", heads, numeric, lines))


def _config_cells(
    study: Study, group: Group, effect: Effect | None, back: Gain | None
) -> list[Cell]:
    row, digits = group.row, 2 if study.score == "test_error" else 4
    return [
        Cell(group.label, group.label),
        Cell(str(row["n"]), row["n"]),
        _spread(row[f"{study.score}_mean"], row[f"{study.score}_sd"], digits),
        *_tested(study, effect),
        Cell("baseline") if group.is_baseline else _chance(effect),
        *_tested(study, back),
        _chance(back),
        _number(row["train_accuracy_eval_mode_mean"], 1),
        _number(row["train_accuracy_train_mode_mean"], 1),
        _number(row["shift_ratio_mean"], 3),
        _number(row["shift_ratio_max"], 3),
        Cell(format_text(row["shift_ratio_max_layer"])),
    ]


def _tested(study: Study, effect: Effect | Gain | None) -> list[Cell]:
    """A difference and its interval."""
    if effect is None:
        return [Cell(NONE), Cell(NONE)]
    value = Cell(amount(study, effect.value, "+"), effect.value)
    return [value, Cell(span(study, effect.found) or NONE, effect.found.low)]


def _chance(effect: Effect | Gain | None) -> Cell:
    """Whether it is more than chance, in a table's few words; sorted by p."""
    if effect is None:
        return Cell(NONE)
    if isinstance(effect, Effect) and effect.is_same:
        return Cell("same training")
    if not effect.testable:
        return Cell("one seed" if effect.found_n < 2 else "no spread")
    if effect.real:
        return Cell(f"yes ({p_text(effect.p)})", effect.p)
    needed = effect.seeds_needed
    seeds = "" if needed is None else f", ~{needed:,} seeds"
    return Cell(f"no ({p_text(effect.p)}{seeds})", effect.p)


def _without_empty(table: Table) -> Table:
    """Without columns in which no row says anything."""
    kept = [
        i
        for i in range(len(table.heads))
        if any(line.cells[i].text not in (NONE, "baseline") for line in table.lines)
    ]
    lines = [replace(line, cells=[line.cells[i] for i in kept]) for line in table.lines]
    heads, numeric = [table.heads[i] for i in kept], [table.numeric[i] for i in kept]
    return Table(table.id, heads, numeric, lines)


def runs_table(study: Study) -> Table:
    """One row a run, also those that do not count."""
    heads = [
        ("config", "the config's name"),
        ("seed", "the run's seed"),
        ("status", "as run.json says"),
        ("test error %", "last epoch"),
        ("test loss", "last epoch"),
        ("shift mean", "mean over BN layers of the shift ratio"),
        ("shift max", "largest over BN layers"),
        ("minutes", "wall time of the run"),
        ("images/s", "in training"),
        ("device", "where it ran"),
        ("started", "UTC"),
    ]
    lines = [
        Line(_run_cells(group, run, counts), group if counts else None)
        for group in study.groups
        for counts, runs in ((True, group.runs), (False, group.others))
        for run in runs
    ]
    numeric = [False, True, False, *[True] * 6, False, False]
    return _without_empty(Table("runs", heads, numeric, lines))


def _run_cells(group: Group, run: RunRecord, counts: bool) -> list[Cell]:
    accuracy, seconds = number(run.summary.get("test_accuracy")), number(run.run.get("seconds"))
    status = run.status if counts else f"{run.status}, not counted"
    return [
        Cell(group.label, group.label),
        Cell(str(run.seed), run.seed),
        Cell(status, status),
        _number(None if accuracy is None else 100 - accuracy, 2),
        _number(number(run.summary.get("test_loss")), 4),
        _number(number(run.summary.get("shift_ratio_mean")), 3),
        _number(number(run.summary.get("shift_ratio_max")), 3),
        _number(None if seconds is None else seconds / 60, 1),
        _number(number(run.run.get("images_per_second")), 0),
        Cell(shown(device_of(run))),
        Cell(shown(run.run.get("started")).replace("T", " ").removesuffix("+00:00")),
    ]


def differences_table(study: Study) -> Table:
    """One row for each key in which configs differ and each of its values."""
    keys, configs = differing(study.groups)
    lines = []
    for key in keys:
        having: dict[str, list[str]] = {}
        for group in study.groups:
            if group.name in configs:
                having.setdefault(shown(configs[group.name].get(key)), []).append(group.label)
        for value, labels in having.items():
            cells = [Cell(key, key), Cell(value, value), Cell(str(len(labels)), len(labels))]
            lines.append(Line([*cells, Cell(", ".join(labels))]))
    heads = [
        ("key", "in config.yaml"),
        ("value", "its value"),
        ("configs", "how many have it"),
        ("which", "their names"),
    ]
    return Table("differences", heads, [False, False, True, False], lines)
