"""`vshift data list` and `vshift data fetch`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vshift.cli.streams import echo
from vshift.cli.usage import App

app = App(help="The data sets.")


@app.command("list")
def data_list() -> None:
    """List the data sets, and which of them are on this machine."""
    from vshift.data import available
    from vshift.tables import Column, Table, write
    from vshift.text import format_integer

    columns = [Column("name", is_text=True), Column("classes", 70), Column("size")]
    columns += [Column("train"), Column("test"), Column("where", 60, is_text=True)]
    rows = [
        [
            entry.name,
            *map(format_integer, (entry.classes, entry.size, entry.train, entry.test)),
            entry.where,
        ]
        for entry in available()
    ]
    write(Table(columns, rows), "table", sys.stdout)


@app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One that `vshift data list` shows.")],
) -> None:
    """Download a data set once into the user's cache folder."""
    from vshift.data import fetch

    echo(fetch(name))
