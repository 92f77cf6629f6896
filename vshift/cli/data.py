"""`vshift data list` and `vshift data fetch`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The data sets.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def data_list() -> None:
    """The data sets, and which of them are here."""
    from vshift.data import available

    typer.echo(f"{'name':12} {'classes':>7} {'size':>5} {'train':>7} {'test':>7}  where")
    for entry in available():
        numbers = (entry.classes, entry.size, entry.train, entry.test)
        classes, size, train, test = ("–" if n is None else f"{n:,}" for n in numbers)
        where = f"{entry.where} ({entry.note})"
        typer.echo(f"{entry.name:12} {classes:>7} {size:>5} {train:>7} {test:>7}  {where}")


@app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Download a data set once into the user's cache folder."""
    from vshift.data import fetch

    typer.echo(fetch(name))
