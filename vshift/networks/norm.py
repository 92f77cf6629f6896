"""Normalisation layers, and the batch norm that exposes its batch statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.errors import ConfigError

if TYPE_CHECKING:
    from vshift.config import norm as config


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

    Attributes:
        freeze_after: the epoch after which `enter_epoch` freezes the layer; None never does.
        frozen: training mode normalises with the running statistics too and does not move them, as
            in the last epochs of Wu & Johnson 2021 (2105.07576); weight and bias still learn.
            `batch_mean` and `batch_var` are those of the batch nevertheless.

    Raises:
        ValueError: from PyTorch, for a batch or group with a single value per channel whose
            statistics are needed.
    """

    batch_mean: Tensor
    batch_var: Tensor
    freeze_after: int | None = None
    frozen = False

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
        if not 2 <= input.ndim <= 5:
            raise ValueError(f"expected [N, C] to [N, C, D, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return self._evaluated(input)
        if self.frozen:
            with torch.no_grad():
                self._trained(input)  # writes the batch's statistics, for the log
            return self._on_running(input)
        output = self._trained(input)
        if self.update:
            self._update_running()
        return output

    @property
    def trains_on_batch(self) -> bool:
        """Whether training normalises with nothing but the batch's own statistics."""
        return not self.frozen

    def enter_epoch(self, epoch: int) -> bool:
        """Freeze the layer or not, as `freeze_after` says; returns whether that changes it."""
        before = self.frozen
        self.frozen = self.freeze_after is not None and epoch > self.freeze_after
        return self.frozen != before

    def _trained(self, input: Tensor) -> Tensor:
        if self.ghost is None:
            return self._normalised(input, self.batch_mean, self.batch_var)
        return self._in_groups(input, self.ghost)

    def _evaluated(self, input: Tensor) -> Tensor:
        if self.evaluate == "batch":
            parts = (input,) if self.ghost is None else torch.split(input, self.ghost)
            return _joined([self._normalised(part, None, None) for part in parts])
        return self._on_running(input)

    def _on_running(self, input: Tensor) -> Tensor:
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


class BatchRenorm(BatchNorm):
    """Batch renormalisation over [N, C] or [N, C, H, W]: `BatchNorm` trained nearly as it tests.

    Ioffe 2017 (1702.03275), algorithm 1. With batch mean and standard deviation μ_B and σ_B and the
    running μ and σ from before the batch,

        y = γ·((x − μ_B)/σ_B · r + d) + β,  r = clip(σ_B/σ, 1/R, R),  d = clip((μ_B − μ)/σ, −D, D),

    where r and d are constants for the gradient. Unclipped this is γ·(x − μ)/σ + β, what eval mode
    does; with R = 1 and D = 0 it is `BatchNorm`. The first `plain_steps` batches of training are;
    then R grows linearly to `rmax` and D to `dmax`, until batch number `rmax_steps` and
    `dmax_steps` (section 4.2). The batches are counted in `num_batches_tracked`, on the device.

    σ² = running variance + eps, as in `BatchNorm`; the paper averages σ_B instead. Eval mode, the
    buffers and their names are those of `BatchNorm`.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        affine: bool = True,
        *,
        rmax: float = 3.0,
        dmax: float = 5.0,
        plain_steps: int = 5_000,
        rmax_steps: int = 40_000,
        dmax_steps: int = 25_000,
    ) -> None:
        super().__init__(channels, eps, momentum, affine)
        self.rmax, self.dmax, self.plain_steps = rmax, dmax, plain_steps
        self.rmax_steps, self.dmax_steps = rmax_steps, dmax_steps

    @property
    def trains_on_batch(self) -> bool:
        return False

    def limits(self) -> tuple[Tensor, Tensor]:
        """R and D of the next batch, on the layer's device."""
        assert self.num_batches_tracked is not None
        grown = self.num_batches_tracked.float() - self.plain_steps

        def share(steps: int) -> Tensor:
            return (grown / max(1, steps - self.plain_steps)).clamp(0, 1)

        return 1 + (self.rmax - 1) * share(self.rmax_steps), self.dmax * share(self.dmax_steps)

    def _trained(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            super()._trained(input)  # writes the batch's statistics
            r, d = self._corrections(input.numel() // self.num_features)
        scale = r if self.weight is None else self.weight * r
        shift = d if self.weight is None else self.weight * d
        shift = shift if self.bias is None else shift + self.bias
        return F.batch_norm(input, None, None, scale, shift, True, 0.0, self.eps)

    def _corrections(self, count: int) -> tuple[Tensor, Tensor]:
        """r and d, given the number of values per channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        rmax, dmax = self.limits()
        # Normalisation uses the batch's biased variance.
        spread = (self.batch_var * ((count - 1) / count) + self.eps).sqrt()
        running = (self.running_var + self.eps).sqrt()
        r = (spread / running).clamp(1 / rmax, rmax)
        d = ((self.batch_mean - self.running_mean) / running).clamp(-dmax, dmax)
        return r, d

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rmax={self.rmax}, dmax={self.dmax}"


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C] or [N, C, H, W], at each pixel by itself.

    Ba et al. 2016 (1607.06450). Over C alone, not over C, H and W: every pixel of an image is then
    treated as a vector [C] and as a token of a transformer is, whatever the image's size, as in
    ConvNeXt (Liu et al. 2022, 2201.03545). `nn.GroupNorm` of one group takes C, H and W together.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class RMSNorm(nn.RMSNorm):
    """RMS norm over the channels of [N, C] or [N, C, H, W], at each pixel by itself.

    Zhang & Sennrich 2019 (1910.07467), equation 4: γ·x/√(mean of x² over C + eps).
    """

    def forward(self, input: Tensor) -> Tensor:
        # In float32, which PyTorch's own does not promise for a bf16 input and a float32 weight.
        x = input.movedim(1, -1)
        return super().forward(x.float()).to(x.dtype).movedim(-1, 1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def make_norm(norm: config.AnyNorm, channels: int) -> nn.Module:
    """The layer for `bn` in a block order, for a number of channels."""
    from vshift.config import norm as config

    layer: BatchNorm | LayerNorm | RMSNorm
    match norm:
        case config.BatchNorm():
            layer = BatchNorm(
                channels,
                norm.eps,
                norm.momentum,
                norm.affine,
                ghost=norm.ghost,
                update=norm.update_running_stats,
                evaluate=norm.eval_statistics,
            )
            layer.freeze_after = norm.freeze_after
        case config.BatchRenorm():
            layer = BatchRenorm(
                channels,
                norm.eps,
                norm.momentum,
                norm.affine,
                rmax=norm.rmax,
                dmax=norm.dmax,
                plain_steps=norm.plain_steps,
                rmax_steps=norm.rmax_steps,
                dmax_steps=norm.dmax_steps,
            )
        case config.LayerNorm():
            layer = LayerNorm(channels, norm.eps, norm.affine)
        case config.RMSNorm():
            layer = RMSNorm(channels, norm.eps, norm.affine)
        case config.OwnNorm():
            from vshift.networks.by_reference import own_module

            names = ("channels", "num_channels", "num_features", "features", "dim")
            return own_module("norm.kind", norm, **dict.fromkeys(names, channels))
        case config.GroupNorm() | config.NoNorm():
            return make_group_norm(norm, channels)
    _initialise(layer, norm)
    return layer


def make_group_norm(norm: config.AnyNorm, channels: int) -> nn.Module:
    """The layer for `gn` in a block order: group norm whatever the kind of the norm is.

    One BN of a block replaced by it keeps the statistics' errors of the layers before from
    adding up (Huang et al. 2022, 2203.10778). With the kind `none` it is nothing.

    Raises:
        ConfigError: the groups do not divide the channels, or a norm of one's own says no groups.
    """
    from vshift.config import norm as config

    if isinstance(norm, config.OwnNorm):
        raise ConfigError(
            f"network.block: gn is a group norm, and {norm.kind} says nothing of its groups; "
            "write bn, which that norm takes the place of"
        )
    if norm.kind == "none":
        return nn.Identity()
    key, groups = ("groups", norm.groups) if norm.kind == "group" else ("gn_groups", norm.gn_groups)
    if channels % groups:
        raise ConfigError(
            f"norm.{key}: {groups} groups do not divide a layer "
            f"of {channels} channels; "
            f"choose one of {', '.join(str(n) for n in range(1, 65) if channels % n == 0)}"
        )
    layer = nn.GroupNorm(groups, channels, norm.eps, norm.affine)
    _initialise(layer, norm)
    return layer


def _initialise(layer: nn.Module, norm: config.AnyNorm) -> None:
    """Give γ and β, where the layer has them, the values that they start with."""
    for key, start in (("weight", "scale_init"), ("bias", "shift_init")):
        parameter = getattr(layer, key, None)
        if parameter is not None:
            nn.init.constant_(parameter, getattr(norm, start, 0.0))
