"""`vshift watch`."""

from __future__ import annotations

from typing import Annotated

import typer

from vshift.cli.options import RunsDirs


def watch(
    runs_dirs: RunsDirs,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between looks.")] = 2.0,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Also write every run's numbers into RUN/tensorboard."),
    ] = False,
) -> None:
    """Show a live table of runs; q or Ctrl-C leaves, and training continues."""
    from vshift.live.watch import watch as watch_runs

    watch_runs(runs_dirs, once=once, every=every, tensorboard=tensorboard)
