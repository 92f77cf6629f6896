"""Measuring the variance of every BN layer's input, without changing the run.

Three variances of the same input (Li et al. 2019, section 4): `train`, what the layer saw in
training batches; `running`, what its moving average remembers; `eval`, what it meets with the whole
network in eval mode. All are UNBIASED batch variances, so that like is compared with like:
normalisation itself uses the biased one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.norm import BatchNorm


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every channel, float64 [C] on the CPU."""

    mean: Tensor
    variance: Tensor


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every BN layer that keeps running statistics, by name, in the order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    }


def running_moments(model: nn.Module) -> dict[str, Moments]:
    """What every BN layer remembers."""
    return {
        name: Moments(_float64(layer.running_mean), _float64(layer.running_var))
        for name, layer in batch_norms(model).items()
    }


class TrainingLog:
    """Sums what every `vshift.networks.BatchNorm` saw, on the device, without a synchronisation.

    Call `add` after each training step and `take` once an epoch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {n: m for n, m in batch_norms(model).items() if isinstance(m, BatchNorm)}
        self._seen = [m.batch_mean for m in self.layers.values()]
        self._seen += [m.batch_var for m in self.layers.values()]
        self._sums = [torch.zeros_like(tensor) for tensor in self._seen]
        self._steps = 0

    def add(self) -> None:
        """Take in the last batch's statistics."""
        if self._sums:
            torch._foreach_add_(self._sums, self._seen)
        self._steps += 1

    def take(self) -> dict[str, Moments]:
        """The averages over all batches since the last call, and start anew."""
        averages = [_float64(total) / max(self._steps, 1) for total in self._sums]
        for total in self._sums:
            total.zero_()
        self._steps = 0
        count = len(self.layers)
        return {
            name: Moments(averages[i], averages[count + i]) for i, name in enumerate(self.layers)
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": [total.cpu().clone() for total in self._sums], "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from sums that `state_dict` gave; in place, as captured steps need it."""
        for total, saved in zip(self._sums, state["sums"], strict=True):
            total.copy_(saved)
        self._steps = int(state["steps"])


def shift_ratio(running: Tensor, evaluated: Tensor) -> float:
    """max(eval/running, running/eval) of the channel means (Li et al. 2019, section 4), ≥ 1."""
    a, b = float(running.mean()), float(evaluated.mean())
    if not (a > 0 and b > 0):
        return float("nan") if a != b else 1.0
    return max(a / b, b / a)


def ratio_error(ratio: float, variance: float, error: float, batches: int, average: float) -> float:
    """Standard error of a shift ratio, from the spread of the eval variance between batches.

    running and eval variance are averages over batches of one size, so with relative spread δ from
    batch to batch the ratio's relative error is δ·√(1/B + 1/B_run). A moving average of weight m
    is worth B_run = (2 − m)/m batches, a simple one as many as it saw. How far the weights moved
    while it averaged comes on top and is not known here.

    Args:
        variance, error: channel mean of the eval variance and its standard error over `batches`.
        average: B_run.
    """
    if not (variance > 0 and average > 0):
        return float("nan")
    return ratio * error / variance * math.sqrt(1 + batches / average)


def _float64(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().to("cpu", torch.float64)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside: buffers, modes and random states are afterwards as before."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({b.device.index or 0 for b in model.parameters() if b.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, old in buffers:
                    buffer.copy_(old)
            for module, mode in modes:
                module.training = mode
