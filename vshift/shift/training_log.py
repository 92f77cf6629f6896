"""Input statistics of the BN layers in training batches, averaged over an epoch on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vshift.networks.norm import BatchNorm
from vshift.shift.stats import Moments, batch_norms, to_float64


class TrainingLog:
    """Sums the batch statistics of every `vshift.networks.BatchNorm`, without a synchronisation.

    Call `add` after each training step and `compute_and_reset` once per epoch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {n: m for n, m in batch_norms(model).items() if isinstance(m, BatchNorm)}
        self._batch = [m.batch_mean for m in self.layers.values()]
        self._batch += [m.batch_var for m in self.layers.values()]
        if self._batch:  # the number of batches is summed on the device too
            self._batch.append(torch.ones_like(self._batch[0][0]))
        self._sums = [torch.zeros_like(tensor) for tensor in self._batch]

    def add(self) -> None:
        """Add the last batch's statistics."""
        if self._sums:
            torch._foreach_add_(self._sums, self._batch)

    def compute_and_reset(self) -> dict[str, Moments]:
        """The averages over all batches since the last call."""
        if not self._sums:
            return {}
        *sums, steps = map(to_float64, self._sums)
        averages = [total / steps.clamp(min=1) for total in sums]
        torch._foreach_zero_(self._sums)
        means, variances = averages[: len(self.layers)], averages[len(self.layers) :]
        return dict(zip(self.layers, map(Moments, means, variances), strict=True))

    def tensors(self) -> list[Tensor]:
        """What `add` changes, on the device."""
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": [total.to("cpu", copy=True) for total in self._sums]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from sums that `state_dict` gave; in place, as a captured step needs it."""
        for total, saved in zip(self._sums, state["sums"], strict=True):
            total.copy_(saved)
