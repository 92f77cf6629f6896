"""A comparison as a table for people: its columns and how their cells are written.

Columns of summary.json are declared in `vshift.runs.schema.SUMMARY_COLUMNS`; a heading there shows
one. Here are those that several runs make together: difference, interval, significance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vshift.compare.baseline import LABELS, ask_for_baseline
from vshift.compare.groups import AT_CHANCE, short_heads
from vshift.compare.statistics import ONE_SEED
from vshift.compare.table import SCORES, SHOWN, Comparison, row_key, word_key
from vshift.runs import schema
from vshift.runs.files import Row
from vshift.tables import Column, Table
from vshift.text import (
    LEVEL,
    NONE,
    escape_control,
    format_integer,
    format_number,
    format_spread,
    format_text,
    format_value,
    list_names,
    pluralize,
)

_WHOLE = ("epoch", "monte_carlo_passes")
_KEYS = 3  # shown of those in which a row differs
_MEAN = "Mean ± sd over n seeds."


@dataclass(frozen=True)
class _Spec:
    """A column and the function that makes its cells out of rows."""

    head: str
    cell: Callable[[Row], str]
    priority: int
    is_text: bool = False
    folds: bool = False  # into the caption, where all rows say the same
    together: str = ""
    note: str = ""  # what the caption says of it


def to_table(comparison: Comparison) -> Table:
    """The table of a comparison.

    A column without values is left out; one in which all rows agree may go into the caption.
    """

    def key_cell(key: str) -> Callable[[Row], str]:
        return lambda row: format_value(row[key])

    label = partial(_Spec, priority=99, is_text=True, note=_MEAN)
    labels = [
        label(escape_control(head), key_cell(key))
        for head, key in zip(short_heads(comparison.by), comparison.by, strict=True)
    ] or [label("config", lambda row: escape_control(row["label"]))]
    differing = {tuple(row["differs_in"]) for row in comparison.rows if row["differs_in"]}
    left_out = sum(row["left_out"] for row in comparison.rows)
    caption = [f"Left out: {pluralize(left_out, 'run')}."] if left_out else []
    if len(differing) == 1 and not comparison.by:
        keys = list_names(differing.pop(), _KEYS, "keys")
        reference = escape_control(comparison.reference or "")
        caption.append(f"Configs differ from {reference} in {keys}.")
    specs = _specs(comparison, with_differing=len(differing) > 1 and not comparison.by)
    silent = {NONE, "baseline", ONE_SEED}
    shown: list[tuple[_Spec, list[str]]] = []
    same = []
    for spec in [*labels, *specs]:
        cells = [spec.cell(row) for row in comparison.rows]
        values = set(cells)
        if spec.folds and len(values) == 1 and not values <= silent:
            same.append(f"{spec.head} {values.pop()}")
        elif spec in labels or not values <= silent:
            shown.append((spec, cells))
    caption += [f"All rows: {', '.join(same)}."] if same else []
    return Table(
        [
            Column(spec.head, spec.priority, spec.is_text, spec.together, spec.note)
            for spec, _ in shown
        ],
        [list(row) for row in zip(*(cells for _, cells in shown), strict=True)],
        " ".join(caption),
        comparison.rows,
        [*comparison.notes, *_advice(comparison)],
        labels=len(labels),
        name="compare",
    )


def _advice(comparison: Comparison) -> list[str]:
    """Notes on what the columns that are shown cannot say."""
    metrics = comparison.metrics
    notes: list[str] = []
    if comparison.baseline is None and (not metrics or comparison.metric in metrics):
        notes += ask_for_baseline(comparison.groups)
    lost = [group.label for group in comparison.groups if group.is_at_chance]
    if lost and (not metrics or "test_error" in metrics):
        notes.append(f"{AT_CHANCE}: {list_names(lost, LABELS)}")
    return notes


def _specs(comparison: Comparison, *, with_differing: bool) -> list[_Spec]:
    """The columns of `--metrics`, or by default what summary.json declares with a heading,
    differences, and the runs' circumstances."""
    difference, *tested = _tested(comparison)
    if comparison.metrics:
        specs = [_Spec("n", lambda r: str(r["n"]), 98, folds=True)]
        for key in comparison.metrics:
            head = SHOWN[key].heading if key in SHOWN else escape_control(key)
            specs.append(_Spec(head, metric_cell(key), 90))
        return specs + [difference, *tested] * (comparison.metric in comparison.metrics)
    summary = [
        _Spec(
            each.heading,
            partial(_summary_cell, each, word),
            each.priority,
            each.is_text,
            together="average" if "_average_" in each.key else "",
        )
        for column in SHOWN.values()
        for each, word in column.for_each(_words(column, comparison.rows))
    ]
    scores = list(SHOWN).index("test_loss") + 1
    specs = [*summary[:scores], difference, *summary[scores:], *tested]
    if with_differing:
        head = f"differs from\n{escape_control(comparison.reference or '')} in"
        specs.append(_Spec(head, lambda r: list_names(r["differs_in"], _KEYS) or NONE, 4, True))
    return [
        *specs,
        _Spec("data", lambda r: format_text(r["data"]), 4, is_text=True, folds=True),
        _Spec("epochs", lambda r: format_integer(r["epochs"]), 3, folds=True),
        _Spec("device", lambda r: format_text(r["device"]), 2, is_text=True, folds=True),
        _Spec("images/s", lambda r: format_integer(r["images_per_second"]), 0),
        _Spec("parameters", lambda r: format_integer(r["parameters"]), 1, folds=True),
    ]


def _words(column: schema.Column, rows: list[Row]) -> list[str]:
    """The words of the rows that have a value of a column that depends on one."""
    if not column.depends_on:
        return []
    return [row[word_key(column)] or "" for row in rows if row[row_key(column)] is not None]


def _summary_cell(column: schema.Column, word: str | None, row: Row) -> str:
    """A row's value; in the column of a word only where the row has that one."""
    if word is not None and word != (row[word_key(column)] or ""):
        return NONE
    if column.is_text:
        return format_text(row[row_key(column)])
    text = format_spread(row[row_key(column)], row.get(f"{column.key}_sd"), digits=column.digits)
    if column.key not in SCORES:
        return text
    score = next((key for key in SCORES if row[f"{key}_mean"] is not None), SCORES[0])
    return f"{text} (n={row['n']})" if column.key == score else NONE


def _tested(comparison: Comparison) -> list[_Spec]:
    """The columns of the difference to the baseline: value, interval, significance."""
    digits = digits_of(comparison.metric)
    pairs = zip(comparison.rows, comparison.differences, strict=True)
    verdicts = {id(row): difference.cell if difference else NONE for row, difference in pairs}

    def interval(row: Row) -> str:
        low, high = (
            format_number(row[f"difference_{end}"], digits, "+") for end in ("low", "high")
        )
        return NONE if NONE in (low, high) else f"{low} to {high}"

    head = "difference"
    if comparison.metric != "test_error":
        head += f"\nin {escape_control(schema.column_name(comparison.metric))}"
    return [
        _Spec(
            head,
            lambda row: difference_cell(row, comparison.baseline, digits),
            97,
            note=comparison.about_difference,
        ),
        _Spec("95 % interval\nof difference", interval, 9, note="Interval: Welch, 95 %."),
        _Spec("significant", lambda row: verdicts[id(row)], 10, is_text=True),
    ]


def difference_cell(row: Row, baseline: str | None, digits: int = 2) -> str:
    """`+10.42 ± 1.40`, with a star where it is significant."""
    if row["label"] == baseline:
        return "baseline"
    text = format_spread(row["difference"], row["difference_se"], sign="+", digits=digits)
    return f"{text} *" if row["p_adjusted"] is not None and row["p_adjusted"] < LEVEL else text


def digits_of(key: str) -> int:
    """Decimals of a metric: as declared, else 2 for percent, 3 for ratios, 4 for others."""
    if key in schema.SUMMARY_COLUMNS:
        return schema.SUMMARY_COLUMNS[key].digits
    percent = ("_error", "_accuracy", "_ece", "_recovered_")
    if key.endswith("_cost") or any(word in key for word in percent):
        return 2
    return 3 if "_ratio" in key else 4


def metric_cell(key: str) -> Callable[[Row], str]:
    """A function that writes a row's mean ± standard deviation, or its most frequent word."""
    digits = digits_of(key)

    def cell(row: Row) -> str:
        if isinstance(row.get(key), str):
            return format_text(row[key])
        mean, sd = row.get(f"{key}_mean"), row.get(f"{key}_sd")
        if key in _WHOLE or digits == 0:
            return format_integer(mean)
        return format_spread(mean, sd, digits=digits)

    return cell
