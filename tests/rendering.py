"""Comparisons and tables as text, for tests; on a terminal brief, as `vshift compare` is."""

from typing import Any, TextIO

from vshift import tables
from vshift.compare import Comparison, to_table
from vshift.tables import Table


def as_table(table: Comparison | Table) -> Table:
    return to_table(table) if isinstance(table, Comparison) else table


def render(table: Comparison | Table, kind: str, *, brief: bool = True, **options: Any) -> str:
    return tables.render(as_table(table), kind, brief=brief, **options)


def write(table: Comparison | Table, kind: str, stream: TextIO, **options: Any) -> None:
    tables.write(as_table(table), kind, stream, brief=True, **options)
