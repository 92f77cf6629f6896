"""Comparisons and tables as text, for tests."""

from typing import Any, TextIO

from vshift import tables
from vshift.compare import Comparison, to_table
from vshift.tables import Table


def as_table(table: Comparison | Table) -> Table:
    return to_table(table) if isinstance(table, Comparison) else table


def render(table: Comparison | Table, kind: str, **options: Any) -> str:
    return tables.render(as_table(table), kind, **options)


def write(table: Comparison | Table, kind: str, stream: TextIO, **options: Any) -> None:
    tables.write(as_table(table), kind, stream, **options)
