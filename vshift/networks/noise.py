"""Noise: what multiplies activations in training, and is the identity in eval mode.

Every kind has mean 1 and a known variance s², the only number of it that decides the variance
shift: rate/(1 − rate) for dropout, σ² for Gaussian noise, β²/3 for uniform noise (Li et al. 2019,
sections 3 and 5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vshift.config import networks as config


class Noise(nn.Module):
    """Multiplies its input by independent random numbers of mean 1 and variance s² in training.

    Args:
        variance: s², at least 0; with 0 the module is the identity in training too.
        unit: `element`, one number for each value; `channel`, one for each channel of each image.

    Shapes: [N, C] or [N, C, H, W] in, the same out. The product is taken in float32 and rounded
    once, so that low precision biases neither mean nor variance.
    """

    def __init__(self, variance: float, unit: str = "element") -> None:
        super().__init__()
        if not (math.isfinite(variance) and variance >= 0):
            raise ValueError(f"a noise variance is at least 0 and finite, not {variance}")
        self.variance = variance
        self.unit = unit

    def draw(self, multiplier: Tensor) -> Tensor:
        """Fill a float32 tensor with independent multipliers, in place."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.variance == 0:
            return x
        if self.unit == "channel":
            multiplier = x.new_empty((*x.shape[:2], *[1] * (x.ndim - 2)), dtype=torch.float32)
        else:
            multiplier = torch.empty_like(x, dtype=torch.float32)
        return (x * self.draw(multiplier)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"variance={self.variance:.4g}, unit={self.unit}"


class Dropout(Noise):
    """Inverted dropout: 0 with probability `rate`, else 1/(1 − rate). `rate` = s²/(1 + s²).

    On the CPU the rate is rounded to a multiple of 2⁻¹⁶ (and the scale with it, so that the mean
    stays 1): drawing 16 random bits for each of 2 million values took 1.5 ms on one core, and
    PyTorch's `bernoulli_` 23 ms.
    """

    @property
    def rate(self) -> float:
        return self.variance / (1 + self.variance)

    def draw(self, multiplier: Tensor) -> Tensor:
        if multiplier.device.type != "cpu":
            return multiplier.bernoulli_(1 - self.rate).mul_(1 + self.variance)
        kept = max(1, round((1 - self.rate) * 2**16))
        keep = _random_int16(multiplier) < kept - 2**15
        return multiplier.copy_(keep).mul_(2**16 / kept)


def _random_int16(like: Tensor) -> Tensor:
    """Uniform 16-bit integers in the shape and memory order of a dense tensor."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].as_strided(like.shape, like.stride())


class Gaussian(Noise):
    """A normal multiplier of mean 1 and standard deviation σ = s."""

    def draw(self, multiplier: Tensor) -> Tensor:
        return multiplier.normal_(1.0, math.sqrt(self.variance))


class Uniform(Noise):
    """Uout: a multiplier uniform in (1 − β, 1 + β), β = s·√3 (Li et al. 2019, section 5.2)."""

    def draw(self, multiplier: Tensor) -> Tensor:
        beta = math.sqrt(3 * self.variance)
        return multiplier.uniform_(1 - beta, 1 + beta)


_KINDS: dict[str, type[Noise]] = {"dropout": Dropout, "gaussian": Gaussian, "uniform": Uniform}


def make_noise(noise: config.Dropout | config.Gaussian | config.Uniform) -> Noise:
    """The module that a config's entry of `network.noise` describes."""
    return _KINDS[noise.kind](noise.variance, noise.unit)
