"""One forward pass of a network without data: to see shapes, and which modules are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def dry_run(model: nn.Module, channels: int, size: int, *, training: bool = False) -> Any:
    """The output for two images [2, channels, size, size]; no parameter, buffer or mode changes.

    It runs on the meta device, without storage and arithmetic, and on zeros where the network makes
    tensors of its own or looks at values.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    model.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            # Two, as BN on batch statistics refuses a single value.
            images = torch.zeros(2, channels, size, size)
            try:
                state = {name: tensor.to("meta") for name, tensor in tensors.items()}
                return torch.func.functional_call(model, state, images.to("meta"))
            except Exception:  # whatever a network that needs values raises, zeros will show it
                state = {name: tensor.clone() for name, tensor in tensors.items()}
                return torch.func.functional_call(model, state, images)
    finally:
        for module, mode in modes:
            module.training = mode
