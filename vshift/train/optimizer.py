"""Stochastic gradient descent with momentum, from a config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from vshift.config import training as config


class SGD:
    """The update of `torch.optim.SGD`, by PyTorch's own function.

    Making an instance of PyTorch's class imports its compiler: 1.3 to 2.9 s in every run's start
    (PyTorch 2.14, two CPU cores). Besides, momentum buffers exist from the beginning and are zero,
    which gives the same first step, so that a captured step finds them in their place.

    Args:
        groups: each with `params`, and with options of its own.
        options: of all groups: `lr`, `momentum`, `weight_decay`, `nesterov`.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self.param_groups = [{**options, **group} for group in groups]
        weights = [weight for group in groups for weight in group["params"]]
        # One kernel for the whole update, and a learning rate that may live on the device.
        self.fused = all(weight.is_cuda for weight in weights)
        self.momenta: dict[Tensor, Tensor] = {}
        if options["momentum"]:
            self.momenta = {weight: torch.zeros_like(weight) for weight in weights}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                sgd(
                    weights,
                    [weight.grad for weight in weights],
                    [self.momenta.get(weight) for weight in weights],
                    foreach=not self.fused,
                    fused=self.fused,
                    dampening=0.0,
                    maximize=False,
                    **options,
                )

    def tensors(self) -> list[Tensor]:
        """The momentum buffers, which `step` changes besides the weights, in the weights' order."""
        return list(self.momenta.values())

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the momentum buffers in place; ValueError or RuntimeError if they do not fit."""
        for buffer, saved in zip(self.tensors(), state["momenta"], strict=True):
            buffer.copy_(saved)


def make_optimizer(model: nn.Module, config: config.SGD) -> SGD:
    """SGD with weight decay on all parameters, or on none that has one value per channel."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 or config.decay_norm_and_bias]
    others = [p for p in parameters if p.ndim <= 1 and not config.decay_norm_and_bias]
    return SGD(
        [{"params": decayed}, *([{"params": others, "weight_decay": 0.0}] if others else [])],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
