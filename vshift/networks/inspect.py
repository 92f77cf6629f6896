"""`vshift inspect`: the network as built, without data or training."""

from __future__ import annotations

from typing import Any

from vshift.config.schema import Config
from vshift.data import describe
from vshift.networks import build
from vshift.networks.summary import summarise


def describe_network(config: Config) -> dict[str, Any]:
    """What `vshift inspect --json` prints: parameters, macs, bn_layers and layers."""
    data = describe(config.data)
    model = build(config, classes=data.classes, channels=data.channels, size=data.size)
    return summarise(model, data.channels, data.size)


def render_network(config: Config, found: dict[str, Any]) -> str:
    """The same as text: a header, the block order, and a line for each layer."""
    lines = [
        f"{config.network.name}: {found['parameters']:,} parameters, "
        f"{found['macs'] / 1e6:,.1f} M multiply-accumulates an image, "
        f"{found['bn_layers']} BN layers",
        f"block order: {' '.join(config.network.order)}",
        "",
    ]
    width = max(len(layer["name"]) for layer in found["layers"])
    wide = max(len(layer["op"]) for layer in found["layers"])
    lines += [
        f"{layer['name']:{width}}  {layer['op']:{wide}}  "
        f"{'×'.join(str(n) for n in layer['output_shape'])}"
        for layer in found["layers"]
    ]
    return "\n".join(lines)
