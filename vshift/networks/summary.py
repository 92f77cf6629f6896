"""A network's parameters, multiply-accumulates and layers in forward order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from vshift.networks.blocks import Attention, Dense, Residual
from vshift.networks.dry_run import dry_run
from vshift.networks.hooks import hook_of, is_layer
from vshift.networks.noise import Noise


@dataclass(frozen=True)
class Layer:
    """One module in forward order; sizes are those of one image.

    Attributes:
        inputs: number of values it reads.
        shape: of its output, without the batch.
        macs: multiply-accumulates of its forward; 0 but for convolutions, fc layers and attention.
    """

    name: str
    module: nn.Module
    inputs: int
    shape: tuple[int, ...]
    macs: int

    @property
    def outputs(self) -> int:
        """Number of values it writes."""
        return math.prod(self.shape)


def trace(model: nn.Module, channels: int, size: int) -> list[Layer]:
    """Run images [N, channels, size, size] through a copy without storage and note every layer.

    Sums of residual blocks and concatenations of dense ones count as layers.
    """
    layers: list[Layer] = []

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        read, made = _first_tensor((args, kwargs)), _first_tensor(output)
        if read is not None and made is not None:
            layer = Layer(name, module, read[0].numel(), tuple(made.shape[1:]), _macs(module, made))
            place = len(layers)
            if isinstance(module, Residual):  # a block's sum is taken before its exit runs
                exit_ = (i for i, one in enumerate(layers) if one.module in module.exit.modules())
                place = next(exit_, place)
            layers.insert(place, layer)

    handles = [
        # Before the noise after it, which is a hook of its own.
        module.register_forward_hook(partial(note, name), prepend=True, with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, Residual | Dense | _BatchNorm)  # timm's BN has an activation inside
        or (is_layer(module) and not isinstance(module, nn.Identity))
    ]
    try:
        dry_run(model, channels, size)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def summarise(model: nn.Module, channels: int, size: int) -> dict[str, Any]:
    """Summarise a network for `vshift inspect`.

    Returns:
        `parameters`, `macs` (multiply-accumulates of one image's forward: convolutions, fc layers
        and attention), `bn_layers` (count), `layers`: name, op, output_shape (without the batch),
        in forward order. Noise has a `place` too: `before layer1.0.bn2`.
    """
    layers = trace(model, channels, size)
    rows: list[dict[str, Any]] = [
        {"name": layer.name, "op": _op(layer.module), "output_shape": list(layer.shape)}
        for layer in layers
    ]
    for index, layer in enumerate(layers):
        if hook := hook_of(layer.module):
            rows[index]["place"] = hook.place
        elif isinstance(layer.module, Noise):
            rows[index]["place"] = f"before {_next_layer(layers[index:])}"
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": sum(layer.macs for layer in layers),
        "bn_layers": sum(isinstance(m, _BatchNorm) for m in model.modules()),
        "layers": rows,
    }


def _first_tensor(values: Any) -> Tensor | None:
    return next((value for value in tree_leaves(values) if isinstance(value, Tensor)), None)


def _next_layer(layers: Sequence[Layer]) -> str:
    """The first that is no noise, by name."""
    return next(layer.name for layer in layers if not isinstance(layer.module, Noise))


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d | nn.Linear):
        return output[0].numel() * module.weight[0].numel()
    if isinstance(module, Attention):  # the products of queries and keys, and with the values
        return 2 * output[0].numel() * output[0, 0].numel()
    return 0


def _op(module: nn.Module) -> str:
    if isinstance(module, Residual):
        return "add"
    if isinstance(module, Dense):
        return "concatenate"
    name = type(module).__name__
    if isinstance(module, nn.Conv2d):
        groups = f" groups={module.groups}" if module.groups > 1 else ""
        stride = f" stride={module.stride[0]}" if module.stride[0] > 1 else ""
        return f"{name} {module.kernel_size[0]}x{module.kernel_size[1]}{stride}{groups}"
    details = module.extra_repr() if isinstance(module, Noise) else ""
    return f"{name} {details}".strip()
