"""A network's parameters, multiply-accumulates and layers in forward order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vshift.networks.blocks import Dense, Residual
from vshift.networks.noise import Noise


@dataclass(frozen=True)
class Layer:
    """One module in forward order; sizes are those of one image.

    Attributes:
        inputs: number of values it reads.
        shape: of its output, without the batch.
        macs: multiply-accumulates of its forward; 0 but for convolutions and fc layers.
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

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        layers.append(Layer(name, module, inputs[0][0].numel(), shape, _macs(module, output)))

    handles = [
        module.register_forward_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, Residual | Dense)
        or (not list(module.children()) and not isinstance(module, nn.Identity))
    ]
    try:
        _forward_without_storage(model, channels, size)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def summarise(model: nn.Module, channels: int, size: int) -> dict[str, Any]:
    """Summarise a network for `vshift inspect`.

    Returns:
        `parameters`, `macs` (multiply-accumulates of one image's forward, convolutions and fc
        layers), `bn_layers` (count), `layers`: name, op, output_shape (without the batch), in
        forward order.
    """
    layers = trace(model, channels, size)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": sum(layer.macs for layer in layers),
        "bn_layers": sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()),
        "layers": [
            {"name": layer.name, "op": _op(layer.module), "output_shape": list(layer.shape)}
            for layer in layers
        ],
    }


def _forward_without_storage(model: nn.Module, channels: int, size: int) -> None:
    state = {
        name: tensor.to("meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            # Two, as BN that evaluates with batch statistics refuses a single value.
            images = torch.empty(2, channels, size, size, device="meta")
            torch.func.functional_call(model, state, images)
    finally:
        model.train(training)


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d | nn.Linear):
        return output[0].numel() * module.weight[0].numel()
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
