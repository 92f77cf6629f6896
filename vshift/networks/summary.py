"""What was built: parameters, multiply-accumulates and every layer in forward order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vshift.networks.blocks import Dense, Residual
from vshift.networks.noise import Noise


def summarise(model: nn.Module, channels: int, size: int) -> dict[str, Any]:
    """Run images through a copy without storage and note what every layer puts out.

    Returns:
        `parameters`, `macs` (multiply-accumulates of one image's forward, convolutions and fc
        layers), `bn_layers` (count), `layers`: name, op, output_shape (without the batch), in
        forward order.
    """
    layers: list[dict[str, Any]] = []
    macs = 0

    def note(name: str, module: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal macs
            macs += _macs(module, output)
            layers.append({"name": name, "op": _op(module), "output_shape": list(output.shape[1:])})

        return module.register_forward_hook(hook)

    handles = [
        note(name, module)
        for name, module in model.named_modules()
        if isinstance(module, Residual | Dense)
        or (not list(module.children()) and not isinstance(module, nn.Identity))
    ]
    try:
        _forward_without_storage(model, channels, size)
    finally:
        for handle in handles:
            handle.remove()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "bn_layers": sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()),
        "layers": layers,
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
