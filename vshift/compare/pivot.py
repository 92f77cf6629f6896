"""A metric by two keys: one down, one across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vshift.compare.columns import difference_cell, metric_cell
from vshift.compare.fields import Fields, sort_key
from vshift.compare.groups import short_heads
from vshift.compare.table import COLUMNS, Comparison, compare
from vshift.errors import VShiftError
from vshift.runs.files import Row
from vshift.runs.schema import column_name
from vshift.tables import Column, Table
from vshift.text import NONE, escape_control, format_value, pluralize

DIFFERENCE = "difference"


def pivot(
    fields: Fields,
    rows: Sequence[str],
    columns: Sequence[str],
    value: str = "test_error",
    baseline: str | None = None,
) -> Table:
    """Mean ± standard deviation of a metric, or of `difference` the difference ± standard error.

    The records are one object per cell: the keys, `n`, and the value's columns.

    Args:
        rows, columns: the fields whose values go down and across.
        value: a key of summary.json, or `difference` (of the test error to the baseline).

    Raises:
        VShiftError: there is no such field or metric; a key is both; no difference to show.
    """
    if not rows or not columns:
        raise VShiftError("a pivot has --rows and --columns; for one of them alone there is --by")
    for key in rows:
        if key in columns:
            raise VShiftError(f"--rows and --columns both name {escape_control(key)}")
    rows = [fields.require(key, "--rows", section=True) for key in rows]
    columns = [fields.require(key, "--columns", section=True) for key in columns]
    by = (*rows, *columns)
    is_difference = value == DIFFERENCE
    metrics = [] if is_difference else [fields.require_metric(value, "--value")]
    table = compare(fields, baseline, by=by, metrics=metrics)
    if is_difference and table.baseline is None:
        raise VShiftError("--value difference: there is no baseline; name one with --baseline")
    counts = {row["n"] for row in table.rows if row["n"]}
    cells = {}
    for row in table.rows:
        text = difference_cell(row, table.baseline) if is_difference else metric_cell(value)(row)
        with_n = len(counts) > 1 and text not in (NONE, "baseline")
        cells[_texts(row, by)] = f"{text} (n={row['n']})" if with_n else text
    across = _values(table.rows, columns)
    heads = [Column(escape_control(head), 99, is_text=True) for head in short_heads(rows)]
    for texts in across:  # `rate=0.5`, as a number alone does not say what it is
        pairs = zip(short_heads(columns), texts, strict=True)
        heads.append(Column("\n".join(escape_control(f"{head}={text}") for head, text in pairs)))
    if is_difference:
        kept = [key for key in COLUMNS if key.startswith(("difference", "p_"))] + ["verdict"]
    else:
        kept = [value, f"{value}_mean", f"{value}_sd"]
    return Table(
        heads,
        [
            [*left, *(cells.get((*left, *top), NONE) for top in across)]
            for left in _values(table.rows, rows)
        ],
        escape_control(_caption(table, value, columns)),
        [
            {key: row[key] for key in (*by, "n", *kept, "seeds", "left_out") if key in row}
            for row in table.rows
        ],
        table.notes,
        labels=len(rows),
        panels=True,
        name="pivot",
    )


def _caption(table: Comparison, value: str, columns: Sequence[str]) -> str:
    across = ", ".join(columns)
    if value == DIFFERENCE:
        return f"Across {across}. {table.about_difference}"
    counts = {row["n"] for row in table.rows if row["n"]}
    n = f"n = {counts.pop()} runs" if len(counts) == 1 else "n runs"
    caption = f"{column_name(value)} across {across}: mean ± sample standard deviation over {n}."
    caption = caption[:1].upper() + caption[1:]
    left_out = sum(row["left_out"] for row in table.rows)
    return caption + (f" Left out: {pluralize(left_out, 'run')}." if left_out else "")


def _texts(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(format_value(row[key]) for key in keys)


def _values(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the keys' values as text, in the order of the values."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        found.setdefault(_texts(row, keys), [sort_key(row[key]) for key in keys])
    return sorted(found, key=lambda texts: found[texts])
