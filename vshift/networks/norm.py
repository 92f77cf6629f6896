"""Normalisation layers, and the batch norm that shows what it saw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.config.schema import BatchNorm as BatchNormConfig
from vshift.config.schema import GroupNorm as GroupNormConfig
from vshift.config.schema import NoNorm
from vshift.errors import ConfigError


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over [N, C] or [N, C, H, W] that keeps the last batch's statistics.

    It computes what `torch.nn.BatchNorm2d` computes. Besides, after a forward in training mode
    `batch_mean` and `batch_var` hold that batch's mean and UNBIASED variance of every channel: they
    come out of the normalisation's own reduction, so a log of every layer at every step costs
    nothing more. `running_mean` and `running_var` are their moving average with weight `momentum`,
    or with `momentum=None` their simple average over all batches.

    Raises:
        ValueError: from PyTorch, for a training batch with a single value per channel.
    """

    batch_mean: Tensor
    batch_var: Tensor

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True
    ) -> None:
        super().__init__(channels, eps, momentum, affine)
        # float32 whatever the activations are: a moving average in bf16 sticks.
        self.register_buffer("batch_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("batch_var", torch.ones(channels), persistent=False)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected [N, C] or [N, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        # With weight 1 the "moving average" that PyTorch writes is the batch's own statistic.
        output = F.batch_norm(
            input, self.batch_mean, self.batch_var, self.weight, self.bias, True, 1.0, self.eps
        )
        self._update_running()
        return output

    @torch.no_grad()
    def _update_running(self) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight: float | Tensor = (
            1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        )
        self.running_mean.lerp_(self.batch_mean, weight)
        self.running_var.lerp_(self.batch_var, weight)


def make_norm(norm: BatchNormConfig | GroupNormConfig | NoNorm, channels: int) -> nn.Module:
    """The layer that a config's `norm` section describes, for a number of channels."""
    if isinstance(norm, NoNorm):
        return nn.Identity()
    layer: nn.Module
    if isinstance(norm, GroupNormConfig):
        if channels % norm.groups:
            raise ConfigError(
                f"norm.groups: {norm.groups} groups do not divide a layer of {channels} channels; "
                f"choose one of {', '.join(str(g) for g in _divisors(channels))}"
            )
        layer = nn.GroupNorm(norm.groups, channels, norm.eps, norm.affine)
    else:
        momentum = None if norm.cumulative else norm.momentum
        layer = BatchNorm(channels, norm.eps, momentum, norm.affine)
    if norm.affine:
        nn.init.constant_(layer.weight, norm.scale_init)
        nn.init.constant_(layer.bias, norm.shift_init)
    return layer


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, min(number, 64) + 1) if number % n == 0]
