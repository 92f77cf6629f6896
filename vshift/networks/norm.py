"""Normalisation layers, and the batch norm that exposes its batch statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.errors import ConfigError

if TYPE_CHECKING:
    from vshift.config import norm as config


# Every normalisation layer, ours and PyTorch's.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over [N, C] or [N, C, H, W] that keeps the last batch's statistics.

    It computes what `torch.nn.BatchNorm2d` computes. Besides, after a forward in training mode
    `batch_mean` and `batch_var` hold that batch's mean and UNBIASED variance of every channel: they
    come out of the normalisation's own reduction, so a log of every layer at every step costs
    nothing more. `running_mean` and `running_var` are their moving average with weight `momentum`,
    or with `momentum=None` their simple average over all batches.

    Args:
        ghost: normalise each `ghost` consecutive images of a training batch, and the smaller rest,
            with their own statistics (ghost batch norm, Hoffer et al. 2017, 1705.08741; Summers &
            Dinneen 2020, 1906.03548). `batch_mean` and `batch_var` are then the averages over these
            groups, each with the same weight, and the running statistics are updated with them
            once a batch.
        update: False never changes the running statistics: the forgotten update operation.
        evaluate: `running`; or `batch`, in eval mode too each batch's own statistics, in groups if
            `ghost` is given, which changes no buffer.

    Raises:
        ValueError: from PyTorch, for a batch or group with a single value per channel whose
            statistics are needed.
    """

    batch_mean: Tensor
    batch_var: Tensor

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        ghost: int | None = None,
        update: bool = True,
        evaluate: str = "running",
    ) -> None:
        super().__init__(channels, eps, momentum, affine)
        self.ghost, self.update, self.evaluate = ghost, update, evaluate
        # float32 whatever the activations are: a moving average in bf16 sticks.
        self.register_buffer("batch_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("batch_var", torch.ones(channels), persistent=False)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected [N, C] or [N, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return self._evaluated(input)
        output = self._trained(input)
        if self.update:
            self._update_running()
        return output

    def _trained(self, input: Tensor) -> Tensor:
        if self.ghost is None:
            return self._normalised(input, self.batch_mean, self.batch_var)
        return self._in_groups(input, self.ghost)

    def _evaluated(self, input: Tensor) -> Tensor:
        if self.evaluate == "batch":
            parts = (input,) if self.ghost is None else torch.split(input, self.ghost)
            return _joined([self._normalised(part, None, None) for part in parts])
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _normalised(self, input: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        """Normalise with the input's own statistics, and write them into `mean` and `var`."""
        # With weight 1 the "moving average" that PyTorch writes is the batch's own statistic.
        return F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)

    def _in_groups(self, input: Tensor, size: int) -> Tensor:
        parts = torch.split(input, size)
        # Zeros: PyTorch adds 0 · (what was there), and what was there could be NaN.
        means = self.batch_mean.new_zeros(len(parts), self.num_features)
        variances = torch.zeros_like(means)
        # unbind: F.batch_norm writes into the rows.
        rows = zip(parts, means.unbind(), variances.unbind(), strict=True)
        output = _joined([self._normalised(*row) for row in rows])
        self.batch_mean.copy_(means.mean(0))
        self.batch_var.copy_(variances.mean(0))
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

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, ghost={self.ghost}, update={self.update}, evaluate={self.evaluate}"


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def make_norm(norm: config.AnyNorm, channels: int) -> nn.Module:
    """The layer for `bn` in a block order, for a number of channels."""
    if norm.kind != "batch":
        return make_group_norm(norm, channels)
    layer = BatchNorm(
        channels,
        norm.eps,
        norm.momentum,
        norm.affine,
        ghost=norm.ghost,
        update=norm.update_running_stats,
        evaluate=norm.eval_statistics,
    )
    return _initialised(layer, norm)


def make_group_norm(norm: config.AnyNorm, channels: int) -> nn.Module:
    """The layer for `gn` in a block order: group norm whatever the kind of the norm is.

    One BN of a block replaced by it keeps the statistics' errors of the layers before from
    adding up (Huang et al. 2022, 2203.10778). With the kind `none` it is nothing.

    Raises:
        ConfigError: the groups do not divide the channels.
    """
    if norm.kind == "none":
        return nn.Identity()
    key, groups = ("groups", norm.groups) if norm.kind == "group" else ("gn_groups", norm.gn_groups)
    if channels % groups:
        raise ConfigError(
            f"norm.{key}: {groups} groups do not divide a layer "
            f"of {channels} channels; "
            f"choose one of {', '.join(str(n) for n in range(1, 65) if channels % n == 0)}"
        )
    return _initialised(nn.GroupNorm(groups, channels, norm.eps, norm.affine), norm)


def _initialised(
    layer: BatchNorm | nn.GroupNorm, norm: config.BatchNorm | config.GroupNorm
) -> nn.Module:
    if norm.affine:
        nn.init.constant_(layer.weight, norm.scale_init)
        nn.init.constant_(layer.bias, norm.shift_init)
    return layer
