"""`vshift inspect`: the network as built, without data or training."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vshift.cli.options import ConfigPath, Sets


def inspect(
    config: ConfigPath,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the network that a config builds: every layer in forward order, parameters and MACs."""
    import json

    from vshift.config import load

    chosen = load(config, sets or [])
    from vshift.data import describe
    from vshift.networks.build import build
    from vshift.networks.summary import summarise
    from vshift.tables import Column, Table, write

    data = describe(chosen.data)
    model = build(chosen, classes=data.outputs, channels=data.channels, size=data.size)
    summary = summarise(model, data.channels, data.size)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{chosen.network.name}: {summary['parameters']:,} parameters, "
        f"{summary['macs'] / 1e6:,.1f} M multiply-accumulates per image, "
        f"{summary['bn_layers']} BN layers"
    )
    if chosen.network.order:
        typer.echo(f"block order: {' '.join(chosen.network.order)}")
    typer.echo()
    columns = [Column(head, is_text=True) for head in ("layer", "operation", "output")]
    rows = [
        [
            layer["name"],
            ", ".join(filter(None, [layer["op"], layer.get("place")])),
            "×".join(map(str, layer["output_shape"])),
        ]
        for layer in summary["layers"]
    ]
    write(Table(columns, rows), "table", sys.stdout)
