"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

Device = Literal["auto", "cpu", "cuda"]
DEVICES = "|".join(get_args(Device))
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
RunsDirs = Annotated[
    list[Path],
    typer.Argument(metavar="RUNS_DIR", help="Folders of runs at any depth, or run folders."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value, e.g. network.depth=32; repeatable."
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where run folders go.")]
DeviceOption = Annotated[
    Device | None, typer.Option("--device", metavar=DEVICES, help="Instead of the config's.")
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", metavar="SEED", help="Instead of the config's seeds; repeatable."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace existing runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def changes_of(
    sets: list[str] | None, device: Device | None, seeds: list[int] | None = None
) -> list[str]:
    """The command line's changes to a config, in the form of `--set`."""
    changes = [*(sets or [])]
    changes += [f"hardware.device={device}"] if device else []
    return [*changes, *([f"seeds={seeds}"] if seeds else [])]
