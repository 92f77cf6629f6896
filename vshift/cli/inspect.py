"""`vshift inspect`: the network as built, without data or training."""

from __future__ import annotations

import json
import sys
from itertools import takewhile
from typing import Annotated

import typer

from vshift.cli.options import ConfigPath, Sets
from vshift.cli.streams import echo
from vshift.text import wrap_words


def inspect(
    config: ConfigPath,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the network that a config builds: every layer in forward order, parameters and MACs."""
    from vshift.config import load

    chosen = load(config, sets or [])
    from vshift.data import describe
    from vshift.networks.build import build
    from vshift.networks.summary import summarise
    from vshift.tables import Column, Table, width_of, write

    data = describe(chosen.data)
    model = build(chosen, classes=data.outputs, channels=data.channels, size=data.size)
    summary = summarise(model, data.channels, data.size)
    if as_json:
        echo(json.dumps(summary))
        return
    head = (
        f"{chosen.network.name}: {summary['parameters']:,} parameters, "
        f"{summary['macs'] / 1e6:,.1f} M MACs per image, "
        f"{summary['bn_layers']} BN layers\n"
    )
    if chosen.network.order:
        head += f"block order: {' '.join(chosen.network.order)}\n"
    echo(wrap_words(head, width_of(sys.stdout)))
    columns = [Column(head, is_text=True) for head in ("layer", "operation", "output")]
    rows = [
        [
            layer["name"],
            ", ".join([layer["op"], *short_place(layer["name"], layer.get("place"))]),
            "×".join(map(str, layer["output_shape"])),
        ]
        for layer in summary["layers"]
    ]
    # Both of a name and an operation may be broken where it is too narrow, between their words.
    write(Table(columns, rows, labels=2), "table", sys.stdout)


def short_place(noise: str, place: str | None) -> list[str]:
    """Where noise sits, without what its own name says: `before bn2` for `layer1.0.bn2.noise1`.

    Returns:
        One text, or none for what is no noise.
    """
    if place is None:
        return []
    where, target = place.split(" ", 1)
    parts = target.split(".")
    pairs = zip(noise.split("."), parts, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    last = max((i for i, part in enumerate(parts) if not part.isdecimal()), default=0)
    return [f"{where} {'.'.join(parts[min(same, last) :])}"]
