"""Stochastic gradient descent with momentum, on lists of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class SGD:
    """`torch.optim.SGD`'s update, by its own function, without what surrounds it.

    The class of PyTorch's imports its compiler when it is made, two seconds of every run's start.
    A weight's momentum buffer is there from the beginning and zero, which gives the same first
    step; so a captured step finds it in its place.

    Args:
        groups: each with `params`, and with `weight_decay` if it has its own.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        common = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        self.param_groups = [{**common, **group} for group in groups]
        weights = [weight for group in groups for weight in group["params"]]
        # One kernel for the whole update, and a learning rate that may live on the device.
        self.fused = all(weight.is_cuda for weight in weights)
        self.momenta: dict[Tensor, Tensor] = {}
        if momentum:
            self.momenta = {weight: torch.zeros_like(weight) for weight in weights}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                sgd(
                    weights,
                    [weight.grad for weight in weights],
                    [self.momenta.get(weight) for weight in weights],
                    foreach=not self.fused,
                    fused=self.fused,
                    weight_decay=group["weight_decay"],
                    momentum=group["momentum"],
                    lr=group["lr"],
                    dampening=0.0,
                    nesterov=group["nesterov"],
                    maximize=False,
                )

    def tensors(self) -> list[Tensor]:
        """What `step` changes besides the weights."""
        return list(self.momenta.values())

    def state_dict(self) -> dict[str, Any]:
        """The momentum buffers, in the order of the weights."""
        return {"momenta": self.tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, in place.

        Raises:
            ValueError, RuntimeError: it belongs to other weights.
        """
        for own, saved in zip(self.tensors(), state["momenta"], strict=True):
            own.copy_(saved)
