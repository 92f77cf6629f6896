"""The options of `vshift compare`, and the table that they ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vshift.compare.columns import to_table
from vshift.compare.fields import Fields
from vshift.compare.paper import view_of
from vshift.compare.pivot import pivot
from vshift.compare.table import compare
from vshift.compare.where import parse_where
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord
from vshift.tables import Table

_TABLE = ("by", "metrics", "difference", "sort")
_PIVOT = ("rows", "columns", "value")


@dataclass(frozen=True)
class CompareOptions:
    """The options of `vshift compare`; None or () if not given."""

    baseline: str | None = None
    by: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    value: str | None = None
    metrics: tuple[str, ...] = ()
    difference: str | None = None
    sort: str | None = None
    where: str | None = None
    view: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that belong to different kinds of table: a view, a pivot, a list of rows.

        Raises:
            VShiftError: options of several of them are given.
        """
        table = [key for key in _TABLE if getattr(self, key)]
        pivot = [key for key in _PIVOT if getattr(self, key)]
        option, refused = next(iter(pivot), ""), table if pivot else []
        if self.view is not None:
            option, refused = "view", table + pivot + ["baseline"] * bool(self.baseline)
        if refused:
            names = " and ".join(f"--{key}" for key in refused)
            raise VShiftError(f"{names} cannot be combined with --{option}")


def table_of(runs: Iterable[RunRecord], options: CompareOptions) -> Table:
    """Make the table that the options ask for; its `notes` are for stderr.

    Raises:
        VShiftError: a field that no run has, no such view, no run left.
    """
    fields, notes = Fields(runs), list[str]()
    if options.where is not None:
        condition = parse_where(options.where, fields)
        kept = [run for run in fields.runs if condition(run)]
        if not kept:
            raise VShiftError(
                f"--where {options.where}: matches none of the {len(fields.runs)} runs"
            )
        notes.append(f"--where keeps {len(kept)} of {len(fields.runs)} runs")
        notes += fields.notes
        fields = fields.only(kept)
    if options.view is not None:
        found = view_of(fields, options.view)
    elif options.rows or options.columns or options.value:
        value = options.value or "test_error"
        found = pivot(fields, options.rows, options.columns, value, options.baseline)
    else:
        found = to_table(
            compare(
                fields,
                options.baseline,
                by=options.by,
                metrics=options.metrics,
                difference=options.difference,
                sort=options.sort,
            )
        )
    return replace(found, notes=[*notes, *fields.notes, *found.notes])
