"""`vshift compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vshift.cli.options import RunsDirs
from vshift.cli.streams import tell
from vshift.errors import VShiftError
from vshift.tables import FORMATS, Format, write

if TYPE_CHECKING:
    from vshift.compare import CompareOptions


def compare(
    runs_dirs: RunsDirs,
    form: Annotated[
        Format,
        typer.Option("--format", metavar="|".join(FORMATS), help="How the table is written."),
    ] = "table",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="NAME", help="The config that differences are taken to."
        ),
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
        typer.Option(
            "--value",
            metavar="NAME",
            help="… and what is in it: a metric (test_error) or difference.",
        ),
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
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Only these runs: 'network.noise.rate < 0.5 and seed != 2'.",
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            metavar="VIEW",
            help="A table of the paper: table3, table4, table6 or figure4.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="The whole caption on a terminal, not three lines.")
    ] = False,
) -> None:
    """Compare runs in a table: one row per config, with errors, differences and shift ratios."""
    from vshift.compare import CompareOptions

    options = CompareOptions(
        baseline=baseline,
        by=names(by, "--by"),
        rows=names(rows, "--rows"),
        columns=names(columns, "--columns"),
        value=value,
        metrics=names(metrics, "--metrics"),
        difference=difference,
        sort=sort,
        where=where,
        view=view,
    )
    print_comparison(runs_dirs, form, options, verbose)
    if form == "table":
        same = ["--baseline", baseline] if baseline else []
        tell(f"next: {shlex.join(['vshift', 'report', *map(str, runs_dirs), *same])}")


def names(text: str | None, option: str) -> tuple[str, ...]:
    """The names in a list with commas, each once; () where the option is not given.

    Raises:
        VShiftError: a name is missing.
    """
    words = [word.strip() for word in text.split(",")] if text is not None else []
    if not all(words):
        raise VShiftError(f"{option} {text}: a name is missing; write for instance a,b")
    return tuple(dict.fromkeys(words))


def print_comparison(
    runs: list[Path],
    form: Format = "table",
    options: CompareOptions | None = None,
    verbose: bool = False,
) -> None:
    """Write the table to stdout and its notes to stderr."""
    from vshift.compare import CompareOptions, table_of
    from vshift.runs import find_runs

    table = table_of(find_runs(runs), options or CompareOptions())
    write(table, form, sys.stdout, brief=not verbose)
    for note in table.notes:
        tell(f"note: {note}")
