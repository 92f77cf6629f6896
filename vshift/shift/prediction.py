"""Why a BN layer's variance differs between training and testing, predicted and measured.

For independent multiplicative noise m with E m = 1 and Var m = s², and X = Σᵢ wᵢ mᵢ xᵢ + (anything
that does not depend on m), over the same distribution of the noise-free x,

    Var(X with noise) = Var(X without) + s² · Σᵢ wᵢ² E[xᵢ²]

exactly; noise directly in front of BN is the case w = 1. With one multiplier for each channel the
extra term is s² · Σ_c E[(Σ_k w_ck x_ck)²], with one for each image s² · E[(Σᵢ wᵢ xᵢ)²]. Variances
are those over all images and positions, so padding, stride and groups are handled by taking the
sums with the layer's own convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.networks.noise import Multiplicative
from vshift.shift.graph import Arrival

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def noise_variance(module: nn.Module) -> tuple[float, str]:
    """s² and the unit (`element`, `channel`, `sample`) of a noise module of ours or PyTorch's.

    Raises:
        ValueError: not independent multiplicative noise of mean 1 that is the identity in eval
            mode (alpha dropout and DropBlock, for instance).
    """
    if isinstance(module, Multiplicative):
        return module.variance, module.unit
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) and module.p < 1:
        unit = "element" if isinstance(module, nn.Dropout) else "channel"
        return module.p / (1 - module.p), unit
    raise ValueError(f"{type(module).__name__} is not independent multiplicative noise of mean 1")


@torch.no_grad()
def extra_variance(x: Tensor, variance: float, unit: str, linear: nn.Module | None) -> Tensor:
    """s² Σ wᵢ² E[xᵢ²] of every channel: what noise on `x` adds to the variance behind `linear`.

    Args:
        x: what the noise multiplies, [N, C] or [N, C, H, W].
        variance: s².
        unit: `element`, `channel` or `sample`.
        linear: the convolution or fc layer behind the noise, None for noise right before BN.

    Returns:
        float64 [channels behind `linear`].

    Raises:
        ValueError: the layer pads by repeating values, so that one multiplier counts twice.
    """
    if repeats_values(linear):
        raise ValueError(f"no formula for padding_mode {linear.padding_mode}")  # type: ignore[union-attr]
    x = x.double() if x.dtype == torch.float64 else x.float()
    if linear is None:
        return variance * _channel_mean(x.square())
    if unit == "channel" and isinstance(linear, Convolution):
        return variance * _per_input_channel(linear, x)
    weight = linear.get_parameter("weight")
    if unit == "sample":
        return variance * _channel_mean(_apply(linear, x, weight).square())
    return variance * _channel_mean(_apply(linear, x.square(), weight.square()))


def _channel_mean(x: Tensor) -> Tensor:
    return x.mean([d for d in range(x.ndim) if d != 1]).double()


def _apply(linear: nn.Module, x: Tensor, weight: Any, groups: int | None = None) -> Tensor:
    """The layer's own convolution or product without its bias, with another weight."""
    weight = weight.to(x.dtype)
    if isinstance(linear, nn.Linear):
        return F.linear(x, weight)
    assert isinstance(linear, Convolution)
    x, padding = _padded(linear, x)
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    groups = groups or linear.groups
    return convolve(x, weight, None, linear.stride, padding, linear.dilation, groups)


def repeats_values(linear: nn.Module | None) -> bool:
    """Whether a convolution pads with copies of its input instead of zeros."""
    return isinstance(linear, Convolution) and linear.padding_mode != "zeros"


def _padded(conv: Convolution, x: Tensor) -> tuple[Tensor, Any]:
    """The input with padding that is not zeros made explicit, and the padding that is left."""
    if conv.padding_mode == "zeros":
        return x, conv.padding
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


def _per_input_channel(conv: Convolution, x: Tensor) -> Tensor:
    """Σ_c E[(Σ_k w_ck x_ck)²] for every output channel, one input channel at a time."""
    inputs, outputs = x.shape[1] // conv.groups, conv.out_channels // conv.groups
    total = torch.zeros(conv.out_channels, dtype=torch.float64, device=x.device)
    for channel in range(x.shape[1]):
        group, inside = divmod(channel, inputs)
        mine = slice(group * outputs, (group + 1) * outputs)
        part = _apply(conv, x[:, [channel]], conv.weight[mine, [inside]], groups=1)
        total[mine] += _channel_mean(part.square())
    return total


@torch.no_grad()
def noise_part(arrival: Arrival, modules: dict[str, nn.Module], change: Tensor) -> Tensor:
    """What a noise adds to a BN's input in one forward, given what it added to its own input."""
    for name in arrival.linears:
        change = _apply(modules[name], change, modules[name].weight)
    return change


@dataclass(frozen=True)
class Cosine:
    """cos²θ between a layer's filters and the all-ones vector, mean over filters, and d·cos²θ.

    cos²θ = (Σw)²/(d Σw²), d = (in_channels/groups)·k² (Li et al. 2019, section 3.2).
    """

    cos2: float
    dcos2: float


@torch.no_grad()
def cosine(linear: nn.Module) -> Cosine:
    """Of a convolution or fc layer; filters of zeros are left out."""
    weight = linear.get_parameter("weight").detach().double().flatten(1)
    squares = weight.square().sum(1)
    dcos2 = (weight.sum(1).square() / squares)[squares > 0]
    if not len(dcos2):
        return Cosine(float("nan"), float("nan"))
    return Cosine(float(dcos2.mean()) / weight.shape[1], float(dcos2.mean()))


def delta_a(rate: float, square: float, variance: float) -> float:
    """Case (a), noise directly before BN: Var_test/Var_train = v / ((1/p)(c² + v) − c²).

    Li et al. 2019, section 3.1, with p = 1 − rate; `square` is c² and `variance` v of the
    noise-free input.
    """
    return variance / ((square + variance) / (1 - rate) - square)


def delta_b(rate: float, square: float, variance: float, correlation: float, dcos2: float) -> float:
    """Case (b), noise, then a convolution or fc layer, then BN: Δ(p, d) of Li et al. 2019.

    [vρ + v(1−ρ)/(d cos²θ)] / [vρ + ((1/p−1)c² + v(1/p−ρ))/(d cos²θ)], p = 1 − rate: for inputs that
    share c², variance v and correlation ρ, which data never quite do.
    """
    p, v = 1 - rate, variance
    tested = v * correlation + v * (1 - correlation) / dcos2
    noise = ((1 / p - 1) * square + v * (1 / p - correlation)) / dcos2
    return tested / (v * correlation + noise)


@dataclass(frozen=True)
class InputShape:
    """c², v and ρ of a layer's inputs, as the paper's closed forms take them: one number each."""

    square: float
    variance: float
    correlation: float


@torch.no_grad()
def input_shape(x: Tensor, linear: nn.Module | None = None) -> InputShape:
    """Estimate c², v and ρ from data: the averages over channels of (E x)² and Var x, and

    ρ, the mean correlation between the d inputs of one filter, from the variance of their sum:
    Var(Σxᵢ) = d·v + d(d − 1)·ρ·v. Without a layer ρ is 0.

    Args:
        x: [N, C] or [N, C, H, W], what the noise multiplies.
    """
    x = x.float()
    dims = [d for d in range(x.ndim) if d != 1]
    square = float(x.mean(dims).square().mean())
    variance = float(x.var(dims, correction=0).mean())
    if linear is None or variance == 0:
        return InputShape(square, variance, 0.0)
    weight = linear.get_parameter("weight")
    size = weight[0].numel()
    ones = torch.ones_like(weight[: getattr(linear, "groups", 1)])  # one filter for each group
    total = _inner(linear, _apply(linear, x, ones))
    spread = float(total.double().var(correction=0))
    correlation = (spread / (size * variance) - 1) / max(size - 1, 1)
    return InputShape(square, variance, correlation)


def _inner(linear: nn.Module, total: Tensor) -> Tensor:
    """Sums whose filter lies inside the image: padding brings zeros that are no inputs."""
    if not isinstance(linear, Convolution):
        return total
    inside = total
    for dim, (size, stride) in enumerate(zip(linear.kernel_size, linear.stride, strict=True), 2):
        edge = -(-(size // 2) // stride)
        inside = inside.narrow(dim, edge, max(0, inside.shape[dim] - 2 * edge))
    return inside if inside.numel() else total
