"""`vshift recalibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import DeviceOption, changes_of
from vshift.config.recalibration import ADJUST, METHODS


def recalibrate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help=f"{', '.join(METHODS)} (see docs/science.md); repeatable. "
            f"Default: {', '.join(ADJUST)}.",
        ),
    ] = None,
    batches: Annotated[
        int | None, typer.Option("--batches", help="Training batches to take statistics of.")
    ] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Also write the mode matrix, modes.json.")
    ] = False,
    monte_carlo: Annotated[
        int, typer.Option("--monte-carlo", help="Also test with so many passes with noise on.")
    ] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="More of the config, e.g. recalibration.augment=false.",
        ),
    ] = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Re-estimate BN statistics of finished runs and test; the checkpoint stays as it is."""
    import json

    from vshift.runs import find_runs

    wanted = methods or ADJUST
    changes = [f"recalibration.methods={json.dumps(wanted)}", f"measure.monte_carlo={monte_carlo}"]
    changes += [] if batches is None else [f"recalibration.batches={batches}"]
    changes += ["measure.modes=true"] if modes else ["measure.modes=false"]
    folders = [record.path for record in find_runs(runs)]
    from vshift.runs import RunFolder
    from vshift.train.recalibrate import recalibrate_run, render, render_modes

    found = {}
    for path in folders:
        rows = found[str(path)] = recalibrate_run(
            path, changes_of([*changes, *(sets or [])], device)
        )
        if not as_json:
            typer.echo(render(str(path), rows))
            if modes:
                typer.echo(render_modes(RunFolder(path).modes()))
    if as_json:
        typer.echo(json.dumps(found))
