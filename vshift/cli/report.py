"""`vshift report` and `vshift watch`: runs as a page, and live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs_dirs: Annotated[list[Path], typer.Argument(metavar="RUNS_DIR")],
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Also write each figure as SVG and PDF here.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The config that differences are taken to.")
    ] = None,
) -> None:
    """Write one HTML file, readable without a network: answers, tables and figures."""
    from vshift.report import write_report

    for path in write_report(runs_dirs, out, figures, baseline):
        typer.echo(path)


def watch(
    runs_dir: Annotated[list[Path], typer.Argument(metavar="RUNS_DIR")],
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between looks.")] = 2.0,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Mirror every run's numbers into RUN/tensorboard."),
    ] = False,
) -> None:
    """A live table of running, finished and failed runs; q or Ctrl-C leaves, training goes on."""
    from vshift.live import watch as look_on

    look_on(runs_dir, once=once, every=every, tensorboard=tensorboard)
