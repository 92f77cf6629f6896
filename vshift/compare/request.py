"""What `vshift compare` was asked for, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vshift.compare.columns import to_table
from vshift.compare.fields import Fields
from vshift.compare.pivot import pivot
from vshift.compare.table import compare
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord
from vshift.tables import Table


@dataclass(frozen=True)
class Request:
    """The options of `vshift compare`; lists are texts with commas, as they are typed."""

    baseline: str | None = None
    by: str | None = None
    rows: str | None = None
    columns: str | None = None
    value: str | None = None
    metrics: str | None = None
    difference: str | None = None
    sort: str | None = None
    where: str | None = None
    view: str | None = None


def table_of(runs: Iterable[RunRecord], request: Request) -> Table:
    """The runs as the table that was asked for; `notes` says what a reader has to know.

    Raises:
        VShiftError: options that do not go together, a field that no run has, no run left.
    """
    fields = Fields(runs)
    _refuse_mixtures(request)
    notes: list[str] = []
    if request.where is not None:
        fields = _filtered(fields, request.where, notes)
    found = _table(fields, request)
    found.notes[:0] = notes
    return found


def _table(fields: Fields, request: Request) -> Table:
    if request.view:
        from vshift.compare.views import view_of  # with the schema of configs, which takes time

        return view_of(fields, request.view)
    if request.rows or request.columns or request.value:
        rows, columns = _words(request.rows, "--rows"), _words(request.columns, "--columns")
        return pivot(fields, rows, columns, request.value or "test_error", request.baseline)
    return to_table(
        compare(
            fields,
            request.baseline,
            by=_words(request.by, "--by"),
            metrics=_words(request.metrics, "--metrics"),
            difference=request.difference or "test_error",
            sort=request.sort,
        )
    )


def _words(text: str | None, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")] if text is not None else []
    if not all(words):
        raise VShiftError(f"{option} {text}: a name is missing; write for instance a,b")
    return list(dict.fromkeys(words))


def _filtered(fields: Fields, where: str, notes: list[str]) -> Fields:
    from vshift.compare.where import parse_where

    condition = parse_where(where, fields)
    kept = [run for run in fields.runs if condition(run)]
    count = len(fields.runs)
    if not kept:
        raise VShiftError(f"--where {where}: none of {count} runs is so")
    notes.append(f"--where keeps {len(kept)} of {count} runs")
    return fields.only(kept)


_TABLE = ("by", "metrics", "difference", "sort")
_PIVOT = ("rows", "columns", "value")


def _refuse_mixtures(request: Request) -> None:
    """A view, a pivot or a table: each has its own options."""
    given = [key for key in (*_TABLE, *_PIVOT) if getattr(request, key) is not None]
    if request.view is not None:
        _refuse("--view", given + ["baseline"] * (request.baseline is not None))
    elif any(key in _PIVOT for key in given):
        _refuse(
            f"--{next(key for key in given if key in _PIVOT)}", [k for k in given if k in _TABLE]
        )


def _refuse(option: str, others: Sequence[str]) -> None:
    if others:
        names = " and ".join(f"--{key}" for key in others)
        raise VShiftError(f"{names} cannot go with {option}, which makes a table of its own kind")
