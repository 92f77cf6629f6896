"""The tables of the page: cells with sort keys under headings that explain themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vshift.compare.fields import metric
from vshift.compare.groups import differing_keys, short_heads
from vshift.compare.statistics import Difference
from vshift.compare.table import SHOWN as SUMMARY_SHOWN
from vshift.compare.table import device_of, row_key, words_of
from vshift.report.effects import recovered
from vshift.report.layouts import StudyGroup, grouped, in_words, shown
from vshift.report.study import SHOWN as LAYER_SHOWN
from vshift.report.study import Study
from vshift.runs.read import number
from vshift.runs.schema import SUMMARY_COLUMNS, Column
from vshift.text import NONE, escape_control, format_number, format_spread

LAYER_ROWS = 400  # beyond, the configs with the largest shift only
_BASELINE = "baseline"


@dataclass(frozen=True)
class Cell:
    """`key` is the number that the cell is sorted by; without one its text is."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Line:
    """A row; `group` is the one whose mark it begins with, `about` explains the first cell."""

    cells: list[Cell]
    group: StudyGroup | None = None
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Cells in columns, whose `meaning` explains their heading."""

    id: str
    columns: list[Column]
    lines: list[Line]
    caption: str = ""


_Row = tuple[Sequence[Any], StudyGroup | None, str]  # values, and as in `Line`


def _table(name: str, columns: Sequence[Column], rows: Iterable[_Row], caption: str = "") -> Table:
    """A table of values as their columns show them; without columns that say nothing."""
    lines = []
    for values, group, about in rows:
        cells = []
        for column, value in zip(columns, values, strict=True):
            if isinstance(value, Cell):
                cells.append(value)
            elif column.is_text or isinstance(value, str):
                cells.append(Cell(NONE if value is None else escape_control(str(value))))
            else:
                cells.append(Cell(format_number(number(value), column.digits), number(value)))
        lines.append(Line(cells, group, about))
    silent = (NONE, _BASELINE)
    kept = [i for i in range(len(columns)) if any(x.cells[i].text not in silent for x in lines)]
    lines = [replace(line, cells=[line.cells[i] for i in kept]) for line in lines]
    return Table(name, [columns[i] for i in kept], lines, caption)


def configs_table(study: Study) -> Table:
    """One row per config: scores, differences, shift, and the config keys that differ."""
    regained = {each.group.label: each for each in recovered(study)}
    about = in_words(study.groups)
    # Where the noise sits is told above, and in the table of differences.
    keys = {
        key: values
        for key, values in differing_keys(study.groups).items()
        if not key.startswith(("network.noise", "network.block"))
    }
    heads = dict(zip(keys, short_heads(list(keys)), strict=True))
    score = SUMMARY_COLUMNS[study.score]
    summary = [c for c in SUMMARY_SHOWN.values() if not c.key.startswith("test_")]
    columns = [
        Column("label", "name, without what all names begin with; point at one for its layout",
               "config", is_text=True),
        Column("n", "seeds that are done", "n", digits=0),
        Column(score.key, "last epoch, mean ± sd over seeds", score.heading),
        *_tested("difference", "to the baseline", "of the difference, Welch", "Welch’s test"),
        *_tested("recovered", "by recalibration, mean over seeds",
                 "of what is recovered: paired t over seeds, each run before and after",
                 "paired t test"),
        *([Column("method", "the first method of the config", "recovered by", is_text=True)]
          if len(methods_of(study)) > 1 else []),
        *summary,
    ]  # fmt: skip
    for key, of in keys.items():
        is_text = any(value is not None and number(value) is None for value in of)
        columns.append(Column(key, key, heads[key], is_text=is_text))
    rows = []
    for place, group in enumerate(study.groups):
        mean, sd = (group.row[f"{study.score}_{what}"] for what in ("mean", "sd"))
        each = regained.get(group.label)
        tested = [*_difference(study, group.difference),
                  *_difference(study, each.found if each else None)]  # fmt: skip
        tested[2] = Cell(_BASELINE) if group.is_baseline else tested[2]
        values = [
            group.label,
            len(group.runs),
            Cell(format_spread(mean, sd, digits=score.digits), mean),
            *tested,
            *([each and each.method] if len(methods_of(study)) > 1 else []),
            *(_short_layer(study, group.row[row_key(column)]) for column in summary),
            *(Cell(shown(of[place]), number(of[place])) for of in keys.values()),
        ]
        rows.append((values, group, about.get(group.label, "")))
    return _table("configs", columns, rows, _caption(study))


def methods_of(study: Study) -> list[str]:
    """The methods by which the configs are recalibrated, each config's first."""
    return list(dict.fromkeys(each.method for each in recovered(study)))


def _short_layer(study: Study, value: Any) -> Any:
    """The short name of a layer; any other value as it is."""
    return study.layers.get(value, value) if isinstance(value, str) else value


def _tested(head: str, of_what: str, of_interval: str, test: str) -> list[Column]:
    return [
        Column(head, of_what, head),
        Column("interval", of_interval, "95 % CI"),
        Column("significant", f"{test} at 5 %, p corrected for all rows by Holm", "significant",
               is_text=True),
    ]  # fmt: skip


def _difference(study: Study, found: Difference | None) -> list[Cell]:
    """A difference, its interval, and whether it is significant; sorted by p."""
    if found is None:
        return [Cell(NONE)] * 3
    return [
        Cell(study.format_score(found.value, "+"), found.value),
        Cell(study.format_interval(found), found.low),
        Cell(found.cell, found.p),
    ]


def _caption(study: Study) -> str:
    """The caption of the table of configs."""
    base = next((group.label for group in study.used if group.is_baseline), None)
    parts = [
        "Scores of the last epoch: mean ± sample standard deviation over n seeds.",
        "No differences, as there is no baseline."
        if base is None
        else f"Differences to the baseline, {base}, with Welch’s 95 % interval and test.",
    ]
    if not study.recalibration.empty:
        methods = methods_of(study)
        by = f" ({methods[0]})" if len(methods) == 1 else ""
        parts.append(
            f"Recovered by recalibration{by}, with the paired t interval and test over seeds."
        )
    if base is not None or not study.recalibration.empty:
        parts.append(
            "Each p is corrected for all rows of its column (Holm); “needs 9 seeds”: about as many "
            "per config would show a difference of this size."
        )
    parts.append(
        "The mean shift ratio is over BN layers; the largest is the mean over seeds of each run’s "
        "largest, at the layer where that is most often."
    )
    return " ".join(parts)


def runs_table(study: Study) -> Table:
    """One row per run, also those that do not count."""
    every = [run for group in study.groups for run in (*group.runs, *group.others)]
    summary = [
        pair
        for column in SUMMARY_SHOWN.values()
        for pair in column.for_each(words_of(every, column))
    ]
    columns = [
        Column("label", "the config's name", "config", is_text=True),
        Column("seed", "the run's seed", "seed", digits=0),
        Column("status", "in run.json", "status", is_text=True),
        *(column for column, _ in summary),
        Column("seconds", "wall time of the run", "minutes", digits=1),
        Column("images_per_second", "in training", "images/s", digits=0),
        Column("device", "where it ran", "device", is_text=True),
        Column("started", "UTC", "started", is_text=True),
    ]
    rows: list[_Row] = []
    for group in study.groups:
        counted = [(run, run.status, group) for run in group.runs]
        others = [(run, f"{run.status}, not counted", None) for run in group.others]
        for run, status, marked in [*counted, *others]:
            seconds = number(run.run.get("seconds"))
            values = [
                group.label,
                run.seed,
                status,
                *(
                    metric(run, column.key)
                    if word is None or [word] == words_of([run], column)
                    else None
                    for column, word in summary
                ),
                None if seconds is None else seconds / 60,
                run.run.get("images_per_second"),
                device_of(run),
                shown(run.run.get("started")).replace("T", " ").removesuffix("+00:00"),
            ]
            rows.append((values, marked, ""))
    return _table("runs", columns, rows)


def by_shift(study: Study) -> list[StudyGroup]:
    """The groups with a run that counts, the baseline first, then from large to small shift."""
    return sorted(
        study.used, key=lambda g: (not g.is_baseline, -(g.row["shift_ratio_mean"] or 0.0))
    )


def layers_table(study: Study) -> Table:
    """One row per config and BN layer: what layers.jsonl declares with a heading, last epoch."""
    frame = study.layer_table
    rows: list[_Row] = []
    left_out = 0
    for group in by_shift(study):
        layers = frame[frame["group"] == group.label].sort_values("index")
        if rows and len(rows) + len(layers) > LAYER_ROWS:
            left_out += 1
            continue
        rows += [
            ([group.label, *values], group, "")
            for values in layers[["layer", *(c.key for c in LAYER_SHOWN)]].to_numpy()
        ]
    columns = [
        Column("label", "the config's name", "config", is_text=True),
        Column("layer", "the module's name in the network", "layer", is_text=True),
        *LAYER_SHOWN,
    ]
    caption = "Means over seeds, last epoch. Point at a heading for what it means."
    if left_out:
        caption += (
            f" Of the configs with the largest shift; {left_out} more are in the data of the "
            "figure “Shift ratio by depth”."
        )
    return _table("layers", columns, rows, caption)


def differences_table(study: Study) -> Table:
    """One row for each key in which configs differ and each of its values."""
    columns = [
        Column("key", "in config.yaml", "key", is_text=True),
        Column("value", "its value", "value", is_text=True),
        Column("configs", "the number of configs that have it", "configs", digits=0),
        Column("labels", "their names", "which", is_text=True),
    ]
    rows: list[_Row] = []
    for key, of_all in differing_keys(study.groups).items():
        having = grouped(
            (shown(value), group.label)
            for group, value in zip(study.groups, of_all, strict=True)
            if group.config
        )
        rows += [
            ([key, value, len(labels), Cell(", ".join(labels))], None, "")
            for value, labels in having.items()
        ]
    return _table("differences", columns, rows)
