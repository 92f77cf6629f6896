"""Running averages of a run's weights, kept on their device beside the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config.average import SWA, AnyAverage


def shares(average: AnyAverage, steps: int, per_epoch: int) -> list[float]:
    """The share that each step's weights get in the average when they come in; 0: left out.

    average ← (1 − share)·average + share·weights. The first share is 1; later ones are 1 − decay
    (EMA) or 1/n for the n-th weights (SWA).

    Args:
        steps: of the run.
        per_epoch: steps per epoch.
    """
    every = average.every or per_epoch
    start = average.start if isinstance(average, SWA) else 0.0
    found = [0.0] * steps
    count = 0
    for step in range(1, steps + 1):
        if (steps - step) % every == 0 and step / steps >= start:
            count += 1
            found[step - 1] = (
                1 / count if isinstance(average, SWA) or count == 1 else 1 - average.decay
            )
    return found


class WeightAverage:
    """The average of a model's trained weights and of its floating-point buffers.

    Which step it is and the shares are read from tensors on the device, so that a captured step
    holds the update and nothing waits for the device.

    Args:
        shares: of each step's weights; see `shares`.
    """

    def __init__(self, model: nn.Module, shares: list[float]) -> None:
        state = model.state_dict(keep_vars=True)
        self._present: dict[str, Tensor] = {
            name: tensor
            for name, tensor in state.items()
            if tensor.is_floating_point()
            and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
        }
        self._average = {name: torch.zeros_like(t) for name, t in self._present.items()}
        device = next(iter(self._average.values())).device
        self._shares = torch.tensor(shares, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights, after an optimizer step."""
        share = self._shares.index_select(0, self._step)[0]
        average = list(self._average.values())
        # Not lerp: shares of 0 and 1 must be exact, and a share may live on the device.
        torch._foreach_mul_(average, 1 - share)
        torch._foreach_add_(average, torch._foreach_mul(list(self._present.values()), share))
        self._step += 1

    @contextmanager
    @torch.no_grad()
    def applied(self, buffers: bool) -> Iterator[None]:
        """The model with the averaged weights inside, and with the averaged buffers if wanted."""
        replaced = {
            name: tensor
            for name, tensor in self._present.items()
            if buffers or isinstance(tensor, nn.Parameter)
        }
        own = {name: tensor.clone() for name, tensor in replaced.items()}
        try:
            for name, tensor in replaced.items():
                tensor.copy_(self._average[name])
            yield
        finally:
            for name, tensor in replaced.items():
                tensor.copy_(own[name])

    def tensors(self) -> list[Tensor]:
        """What `update` changes."""
        return [*self._average.values(), self._step]

    def state_dict(self) -> dict[str, Any]:
        """The average by the names of the model's state dict, and the steps so far."""
        return {"model": self._average, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state in place; LookupError or RuntimeError if it is another model's."""
        for name, tensor in self._average.items():
            tensor.copy_(state["model"][name])
        self._step.copy_(state["step"])
