"""`vshift watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import RunsDirs


def watch(
    runs_dirs: RunsDirs,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of the runs, once.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, help="Seconds between looks.")
    ] = 2.0,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Also write every run's numbers into RUN/tensorboard."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="For --tensorboard: into DIR/<name>/seed-<n> instead."
        ),
    ] = None,
) -> None:
    """Show a live table of runs; q or Ctrl-C leaves, and training continues."""
    from vshift.live.tensorboard import TensorBoardWriter
    from vshift.live.watch import watch as watch_runs

    writer = TensorBoardWriter(out) if tensorboard or out else None
    watch_runs(runs_dirs, once=once, as_json=as_json, every=every, writer=writer)
