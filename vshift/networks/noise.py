"""Noise layers: random in training, and not in eval mode.

The multiplicative kinds have mean 1 and a known variance s², the only number of them that decides
the variance shift: rate/(1 − rate) for dropout, σ² for Gaussian noise, β²/3 for uniform noise (Li
et al. 2019, sections 3 and 5). They are the identity in eval mode.

The other kinds each differ from that in one thing, which their docstring says with the exact
variances of the output: c and v are mean and variance of the input, q the drop rate, p = 1 − q.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

if TYPE_CHECKING:
    from vshift.config import noise as config

UNITS = {"sample": 1, "channel": 2, "element": 4}


class Noise(nn.Module):
    """A layer that is random in training mode only: what measurements look for and switch off.

    Attributes:
        epochs: those of a run in which it acts, counted from 1; None in all.
        active: whether it acts now. Where it does not, it is the identity in both modes.
    """

    epochs: range | None = None
    active = True

    def enter_epoch(self, epoch: int) -> bool:
        """Act or not, as `epochs` says; returns whether that changes it."""
        before = self.active
        self.active = self.epochs is None or epoch in self.epochs
        return self.active != before

    @property
    def _when(self) -> str:
        """For `extra_repr`: the epochs in which it acts, where they are not all."""
        if self.epochs is None:
            return ""
        first, last = self.epochs.start, self.epochs.stop - 1
        return f", epochs {first} to {last}" if first < last else f", epoch {first}"


class Multiplicative(Noise):
    """Multiplies its input by independent random numbers of mean 1 and variance s² in training.

    Args:
        variance: s², at least 0; with 0 the module is the identity in training too.
        unit: `element`, one number for each value; `channel`, one for each channel of each image;
            `sample`, one for each image.

    Shapes: [N, C] or [N, C, H, W] in, the same out. The product is taken in float32 and rounded
    once, so that low precision biases neither mean nor variance.
    """

    def __init__(self, variance: float, unit: str = "element") -> None:
        super().__init__()
        if not (math.isfinite(variance) and variance >= 0):
            raise ValueError(f"a noise variance is at least 0 and finite, not {variance}")
        if unit not in UNITS:
            raise ValueError(f"a unit is one of {', '.join(UNITS)}, not {unit!r}")
        self.variance = variance
        self.unit = unit

    def draw(self, multiplier: Tensor) -> Tensor:
        """Fill a float32 tensor with independent multipliers, in place."""
        raise NotImplementedError

    def multiplied(self, x: Tensor) -> Tensor:
        """x times independent multipliers."""
        own = UNITS[self.unit]  # how many of the dimensions have numbers of their own
        if own < x.ndim:
            shape = (*x.shape[:own], *[1] * (x.ndim - own))
            multiplier = x.new_empty(shape, dtype=torch.float32)
        else:
            multiplier = torch.empty_like(x, dtype=torch.float32)
        return (x * self.draw(multiplier)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiplied(x) if self.training and self.active and self.variance != 0 else x

    def extra_repr(self) -> str:
        unit = "" if self.unit == "element" else f", unit={self.unit}"
        return f"variance={self.variance:.4g}{unit}{self._when}"


class Dropout(Multiplicative):
    """Inverted dropout: 0 with probability `rate`, else 1/(1 − rate). `rate` = s²/(1 + s²).

    With the unit `sample`, at the end of a residual branch, it is stochastic depth (Huang et al.
    2016, 1603.09382): after the sum y + m·f, Var_train = Var_eval + s² E[f²].
    """

    @property
    def rate(self) -> float:
        return self.variance / (1 + self.variance)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}, {super().extra_repr()}"

    def draw(self, multiplier: Tensor) -> Tensor:
        keep = draw_mask(multiplier, self.rate)
        return multiplier.mul_(1 / keep)


def keep_count(rate: float) -> int:
    """The number of the 2¹⁶ values of 16 random bits that keep a value: what the CPU rounds to."""
    return max(1, round((1 - rate) * 2**16))


def draw_mask(mask: Tensor, rate: float) -> float:
    """Fill a float32 tensor with independent 0 (dropped) and 1, in place.

    Returns:
        The probability of a 1, which on the CPU is 1 − rate rounded to a multiple of 2⁻¹⁶: drawing
        16 random bits for each of 2 million values took 1.5 ms on one core, and PyTorch's
        `bernoulli_` 23 ms.
    """
    if mask.device.type != "cpu":
        mask.bernoulli_(1 - rate)
        return 1 - rate
    kept = keep_count(rate)
    mask.copy_(_random_int16(mask) < kept - 2**15)
    return kept / 2**16


def _random_int16(like: Tensor) -> Tensor:
    """Uniform 16-bit integers in the shape and memory order of a dense tensor."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].as_strided(like.shape, like.stride())


class Gaussian(Multiplicative):
    """A normal multiplier of mean 1 and standard deviation σ = s."""

    def draw(self, multiplier: Tensor) -> Tensor:
        return multiplier.normal_(1.0, math.sqrt(self.variance))


class Uniform(Multiplicative):
    """Uout: a multiplier uniform in (1 − β, 1 + β), β = s·√3 (Li et al. 2019, section 5.2)."""

    def draw(self, multiplier: Tensor) -> Tensor:
        beta = math.sqrt(3 * self.variance)
        return multiplier.uniform_(1 - beta, 1 + beta)


class _Dropping(Noise):
    """Base of the kinds that drop at a rate q in [0, 1); [N, C] or [N, C, H, W] in and out."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop rate is in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.active:
            return x
        return self.noisy(x).to(x.dtype) if self.training else self.eval_output(x)

    def noisy(self, x: Tensor) -> Tensor:
        """The output in training, in float32 or better."""
        raise NotImplementedError

    def eval_output(self, x: Tensor) -> Tensor:
        """The output in eval mode."""
        return x

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}{self._when}"


class ClassicDropout(_Dropping):
    """Dropout without scaling in training; eval mode multiplies by p instead.

    Srivastava et al. 2014. With a 0/1 mask b of mean p,

        Var_train = Var(b x) = p v + p q c²,    Var_eval = p² v,    E = p c in both.

    Both variances are p² times those of inverted dropout, (v + q c²)/p and v: the ratio, and so
    the shift, is the same. The same factor p² applies to both after a convolution.
    """

    def noisy(self, x: Tensor) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.float32)
        draw_mask(mask, self.rate)
        return x * mask

    def eval_output(self, x: Tensor) -> Tensor:
        return x * (1 - self.rate)


class ScaledDropout(_Dropping):
    """Inverted dropout times √p in training, the identity in eval mode.

    The multiplier b/√p has mean √p and second moment 1, so that

        Var_train = v + q c²,    Var_eval = v,    E_train = √p c,    E_eval = c:

    the standard deviation stays where c = 0. The mean shrinks, and after a ReLU (c > 0) the
    variance is still too large. After a linear layer with weights w the multiplier is √p times
    one of mean 1 and s² = q/p:

        Var_train(Σ wᵢ mᵢ xᵢ) = p Var_eval + q Σ wᵢ² E[xᵢ²].
    """

    def noisy(self, x: Tensor) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.float32)
        keep = draw_mask(mask, self.rate)
        return x * mask.mul_(1 / math.sqrt(keep))


# −α′, the limit of SELU far below 0: λ·α of Klambauer et al. 2017.
_SELU_FLOOR = -1.7580993408473766


class AlphaDropout(_Dropping):
    """`torch.nn.AlphaDropout`: dropped values become d = −α′ = −1.758, SELU's limit.

    Klambauer et al. 2017 (1706.02515), section 3: y = a(b x + (1 − b) d) − a q d with a 0/1 mask b
    of mean p and a = (p (1 + q d²))^(−½). It is the identity in eval mode. From E[b] = E[b²] = p,

        E_train = a p c,    Var_train = a² p (v + q (c − d)²),    Var_eval = v.

    Only for c = 0 and v = 1, standardised SELU activations, are both kept. As y = a p (m (x − d) +
    d) with m of mean 1 and s² = q/p, after a linear layer without padding

        Var_train = a² p² (Var_eval + q/p Σ wᵢ² E[(xᵢ − d)²]).
    """

    def noisy(self, x: Tensor) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.float32)
        keep = draw_mask(mask, self.rate)
        a = 1 / math.sqrt(keep * (1 + (1 - keep) * _SELU_FLOOR**2))
        mask.mul_(a)
        return x * mask + _SELU_FLOOR * (a * keep - mask)


class DropBlock(_Dropping):
    """Drops squares of `size` × `size` pixels, for each channel of each image by itself.

    Ghiasi et al. 2018 (1810.12890), with two changes that make every multiplier's distribution
    exact. Squares may stand half outside the image, so that the border drops as much as the centre;
    and each of the places for a square is taken with probability γ = 1 − p^(1/size²), so that a
    pixel, which lies in size² of them, is kept with probability (1 − γ)^(size²) = p. (The paper's γ
    is q/size², times a correction for squares kept inside.) Kept values are divided by p, where the
    paper divides by each batch's share of kept values.

    So every multiplier has mean 1 and s² = q/p, and Var_train = (v + q c²)/p directly after it, as
    for dropout. But within a channel they are not independent: for two pixels whose squares share
    n places (size² for one and the same),

        Cov(m, m′) = (1 − γ)^(−n) − 1,

    which adds more variance after a convolution than dropout does, where the products of weights
    and inputs agree in sign. For [N, C] it is dropout.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__(rate)
        if size < 1:
            raise ValueError(f"a block's side is at least 1 pixel, not {size}")
        self.size = size
        self.gamma = 1 - (1 - rate) ** (1 / size**2)

    def noisy(self, x: Tensor) -> Tensor:
        if x.ndim == 2 or self.size == 1:
            mask = torch.empty_like(x, dtype=torch.float32)
            keep = draw_mask(mask, self.rate)
            return x * mask.mul_(1 / keep)
        return x * self._kept(x).float().mul_(1 / (1 - self.rate))

    def _kept(self, x: Tensor) -> Tensor:
        """False where a square lies, for [N, C, H, W]."""
        n, channels, height, width = x.shape
        more = self.size - 1
        # Not draw_mask: γ is too small for a multiple of 2⁻¹⁶.
        corners = x.new_empty((n, channels, height + more, width + more), dtype=torch.float32)
        corners.bernoulli_(self.gamma)
        # A square is a column of rows: two short maxima instead of one over size² values.
        rows = F.max_pool2d(corners, (1, self.size), 1)
        kept: Tensor = F.max_pool2d(rows, (self.size, 1), 1) == 0
        return kept

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}, size={self.size}{self._when}"


def places_over_depth(count: int) -> list[float]:
    """The places of a number of blocks: from 0, the first, to 1, the last.

    The rule of timm's `drop_path_rate`: block l of L has the rate times (l − 1)/(L − 1).
    """
    return [i / max(1, count - 1) for i in range(count)]


def make_noise(noise: config.AnyNoise, section: str = "network.noise") -> nn.Module:
    """The module that a config's entry of `network.noise` describes.

    Args:
        section: the entry's dotted key, for messages.

    Raises:
        ConfigError: code of one's own that returns no module.
    """
    from vshift.config import noise as config

    match noise:
        case config.Dropout() | config.StochasticDepth():
            return Dropout(noise.variance, noise.unit)
        case config.Gaussian():
            return Gaussian(noise.variance, noise.unit)
        case config.Uniform():
            return Uniform(noise.variance, noise.unit)
        case config.ClassicDropout():
            return ClassicDropout(noise.rate)
        case config.ScaledDropout():
            return ScaledDropout(noise.rate)
        case config.AlphaDropout():
            return AlphaDropout(noise.rate)
        case config.DropBlock():
            return DropBlock(noise.rate, noise.size)
        case config.OwnNoise():
            from vshift.networks.by_reference import own_module

            module = own_module(f"{section}.kind", noise)
            return module if isinstance(module, _DropoutNd) else as_noise(module)


def as_noise(module: nn.Module) -> Noise:
    """Let a module be noise too: the same object, of a class of the same name."""
    if not isinstance(module, Noise):
        own = type(module)
        module.__class__ = type(own.__name__, (own, Noise), {})
    assert isinstance(module, Noise)
    return module
