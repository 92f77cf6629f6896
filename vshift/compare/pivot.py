"""A metric by two keys: one down, one across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vshift.compare.columns import is_clear, metric_cell
from vshift.compare.fields import Fields, Row, order
from vshift.compare.groups import short_heads
from vshift.compare.table import Comparison, compare
from vshift.errors import VShiftError
from vshift.tables import Column, Table
from vshift.text import NONE, escape_control, format_spread, format_value, pluralize

DIFFERENCE = "difference"


def pivot(
    fields: Fields,
    rows: Sequence[str],
    columns: Sequence[str],
    value: str = "test_error",
    baseline: str | None = None,
) -> Table:
    """Mean ± standard deviation of a metric, or of `difference` the difference ± standard error.

    The records are one object a cell: the keys, `n`, and the value's columns.

    Args:
        rows, columns: the fields whose values go down and across.
        value: a key of summary.json, or `difference` (of the test error to the baseline).

    Raises:
        VShiftError: there is no such field or metric; a key is both; no difference to show.
    """
    _refuse(rows, columns)
    by = (*rows, *columns)
    is_difference = value == DIFFERENCE
    metrics = [] if is_difference else [fields.require_metric(value, "--value")]
    table = compare(fields, baseline, by=by, metrics=metrics)
    if is_difference and table.baseline is None:
        raise VShiftError("--value difference: there is no baseline; name one with --baseline")
    cells = {_at(row, by): row for row in table.rows}
    down = _values(table.rows, rows)
    across = _values(table.rows, columns)
    counts = {row["n"] for row in table.rows if row["n"]}
    heads = [Column(escape_control(head), 99, is_text=True) for head in short_heads(rows)]
    heads += [Column(_head(columns, values)) for values in across]
    body = [
        [
            *(format_value(item) for item in left),
            *(_cell(cells.get(_keyed(left, top)), value, table, len(counts) > 1) for top in across),
        ]
        for left in down
    ]
    return Table(
        heads,
        body,
        escape_control(_caption(table, value, columns, counts)),
        [_record(row, by, value) for row in table.rows],
        table.notes,
        labels=len(rows),
        panels=True,
    )


def _refuse(rows: Sequence[str], columns: Sequence[str]) -> None:
    if not rows or not columns:
        raise VShiftError("a pivot has --rows and --columns; for one of them alone there is --by")
    both = [key for key in rows if key in columns]
    if both:
        raise VShiftError(
            f"--rows and --columns both name {escape_control(both[0])}; it goes one way"
        )


def _keyed(left: Sequence[Any], top: Sequence[Any]) -> tuple[str, ...]:
    return tuple(format_value(item) for item in (*left, *top))


def _at(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(format_value(row[key]) for key in keys)


def _values(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Every combination of the keys' values, in order."""
    found = {_at(row, keys): tuple(row[key] for key in keys) for row in rows}
    return sorted(found.values(), key=lambda values: [order(item) for item in values])


def _head(keys: Sequence[str], values: Sequence[Any]) -> str:
    """`rate=0.5`, as a number alone does not say what it is; a line for each key."""
    heads = short_heads(keys)
    return "\n".join(
        escape_control(f"{head}={format_value(v)}") for head, v in zip(heads, values, strict=True)
    )


def _cell(row: Row | None, value: str, table: Comparison, with_n: bool) -> str:
    if row is None:
        return NONE
    if value == DIFFERENCE:
        if row["label"] == table.baseline:
            return "baseline"
        text = format_spread(row["difference"], row["difference_se"], sign="+")
        text += " *" if is_clear(row) else ""
    else:
        text = metric_cell(value)(row)
    return f"{text} (n={row['n']})" if with_n and text != NONE else text


def _record(row: Row, by: Sequence[str], value: str) -> Row:
    if value == DIFFERENCE:
        kept = [key for key in row if key.startswith(("difference", "p_"))] + ["verdict"]
    else:
        kept = [key for key in (value, f"{value}_mean", f"{value}_sd") if key in row]
    return {key: row[key] for key in (*by, "n", *kept, "seeds", "left_out")}


def _caption(table: Comparison, value: str, columns: Sequence[str], counts: set[int]) -> str:
    across = ", ".join(columns)
    if value == DIFFERENCE:
        return (
            f"Difference of the test error to {table.baseline} across {across}, in points ± "
            f"standard error; *: more than chance (Welch's test at 5 %, Holm over {table.tests})."
        )
    n = f"n = {counts.copy().pop()} runs" if len(counts) == 1 else "n runs"
    text = f"{value} across {across}: mean ± sample standard deviation over {n}."
    left_out = sum(row["left_out"] for row in table.rows)
    return text + (f" Left out: {pluralize(left_out, 'run')}." if left_out else "")
