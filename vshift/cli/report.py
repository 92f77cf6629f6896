"""`vshift report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import RunsDirs
from vshift.cli.streams import echo, tell_to_open


def report(
    runs_dirs: RunsDirs,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures", metavar="DIR", help="Also write each figure as SVG and PDF here."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="NAME", help="The config that differences are taken to."
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option("--title", metavar="TITLE", help="Of the page. Default: the folders' names."),
    ] = None,
) -> None:
    """Write one HTML file, readable without a network: answers, tables and figures."""
    from vshift.report import write_report
    from vshift.runs.files import is_stdout

    command = shlex.join(["vshift", *sys.argv[1:]])
    for path in write_report(runs_dirs, out, figures, baseline, title, command):
        if not is_stdout(path):
            echo(path)
    if not is_stdout(out):
        tell_to_open(out)
