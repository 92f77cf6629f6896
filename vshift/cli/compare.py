"""`vshift compare`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    table = "table"
    md = "md"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


def compare(
    runs_dirs: Annotated[list[Path], typer.Argument(metavar="RUNS_DIR")],
    form: Annotated[Format, typer.Option("--format", help="How the table is written.")] = (
        Format.table
    ),
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The config that differences are taken to.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="KEY,…", help="A row for each value of config keys."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="KEY,…", help="A pivot: the keys down.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="KEY,…", help="… and the keys across.")
    ] = None,
    value: Annotated[
        str | None,
        typer.Option("--value", help="… and what is in it: a metric (test_error) or difference."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="NAME,…", help="Columns: keys of summary.json."),
    ] = None,
    difference: Annotated[
        str | None,
        typer.Option("--difference", metavar="METRIC", help="Compared instead of test_error."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="[-]COLUMN", help="Order of the rows; - is from the top."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="Only these runs: 'network.noise.rate < 0.5 and seed != 2'."),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option("--view", help="A table of the paper: table3, table4, table6 or figure4."),
    ] = None,
) -> None:
    """Line runs up: one row a config, with error, accuracy on training data and shift ratio."""
    from vshift.compare import Request

    request = Request(baseline, by, rows, columns, value, metrics, difference, sort, where, view)
    line_up(runs_dirs, form, request)


def line_up(runs: list[Path], form: Format, request: Any) -> None:
    from vshift.compare import table_of
    from vshift.runs import find_runs
    from vshift.tables import write

    table = table_of(find_runs(runs), request)
    write(table, form.value, sys.stdout)
    for note in table.notes:
        typer.echo(note, err=True)
