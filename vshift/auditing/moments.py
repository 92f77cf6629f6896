"""Mean and variance of a batch norm's input by batch and call; and how far two lie apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.shift.stats import Moments

SHIFT = 0.05  # relative change of variance that is worth a word


@dataclass
class LayerStats:
    """One layer in one pass: for every batch the calls' (mean, UNBIASED variance, values n)."""

    batches: list[list[tuple[Tensor, Tensor, int]]] = field(default_factory=list)

    def add(self, batch: int, mean: Tensor, variance: Tensor, count: int) -> None:
        while len(self.batches) <= batch:
            self.batches.append([])
        self.batches[batch].append((mean, variance, count))

    def settle(self) -> None:
        """Move everything to the CPU in float64: one synchronisation a layer, at the end."""
        self.batches = [
            [(m.double().cpu(), v.double().cpu(), n) for m, v, n in calls]
            for calls in self.batches
            if calls
        ]

    @property
    def calls(self) -> int:
        """How often the layer runs in one forward."""
        return max((len(calls) for calls in self.batches), default=0)

    @property
    def count(self) -> int:
        """Values of a channel in one batch and call, in the first batch."""
        return self.batches[0][0][2]

    def _stacked(self, call: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        rows = [
            row
            for calls in self.batches
            for i, row in enumerate(calls)
            if call is None or i == call
        ]
        means, variances, counts = zip(*rows, strict=True)
        return torch.stack(means), torch.stack(variances), torch.tensor(counts).double()[:, None]

    def average(self, call: int | None = None) -> Moments:
        """What a moving average over these batches estimates: means and variances averaged."""
        means, variances, _ = self._stacked(call)
        return Moments(means.mean(0), variances.mean(0))

    def moving(self, momentum: float | None) -> Moments:
        """What a moving average holds after these batches in this order, over and over."""
        if momentum is None:
            return self.average()
        means, variances, _ = self._stacked()
        age = torch.arange(len(means) - 1, -1, -1, dtype=torch.float64)
        weights = torch.pow(torch.as_tensor(1.0 - momentum, dtype=torch.float64), age)
        weights = (weights / weights.sum())[:, None]
        return Moments((weights * means).sum(0), (weights * variances).sum(0))

    def pooled(self, call: int | None = None) -> Moments:
        """Of all values together, the spread between batch means included; unbiased."""
        means, variances, n = self._stacked(call)
        mean = (means * n).sum(0) / n.sum()
        squares = variances * (n - 1) + n * (means - mean).square()
        return Moments(mean, squares.sum(0) / (n.sum() - 1).clamp(min=1))

    def spread(self, eps: float) -> float:
        """RMS over channels of a batch's own deviation from the average, standardised as `apart`
        does; NaN for one batch."""
        means, variances, _ = self._stacked()
        if len(means) < 2:
            return math.nan
        scale = (variances.mean(0) + eps).sqrt()
        of_means = means.std(0, correction=1) / scale
        of_variances = (variances + eps).log().std(0, correction=1) / math.sqrt(2)
        return max(_rms(of_means), _rms(of_variances))

    def levels(self) -> Tensor:
        """Channel mean of the variance in each batch, [B], all calls of a batch averaged."""
        return torch.stack(
            [torch.stack([v.mean() for _, v, _ in calls]).mean() for calls in self.batches]
        )


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def apart(kept: Moments, seen: Moments, eps: float) -> float:
    """How far statistics lie apart, as the larger of two RMS over channels.

    Means: (kept − seen)/√(seen variance + eps). Variances: log of the ratio, over √2. Both have the
    standard deviation 1/√n if `kept` is from n independent normal values. NaN where not finite.
    """
    scale = (seen.variance + eps).sqrt()
    means = (kept.mean - seen.mean) / scale
    variances = ((kept.variance + eps) / (seen.variance + eps)).log() / math.sqrt(2)
    found = (_rms(means), _rms(variances))
    return math.nan if any(map(math.isnan, found)) else max(found)


def worth(layer: _BatchNorm, count: int) -> float:
    """n_eff: how many values of a channel the running statistics are an average of.

    With momentum m and n values in a batch n(2 − m)/m; for a simple average n times the batches.
    """
    momentum = layer.momentum
    if momentum is None:
        tracked = layer.num_batches_tracked
        return count * max(1, int(tracked) if tracked is not None else 1)
    return count * (2 - momentum) / momentum if momentum > 0 else math.inf


def noise_floor(layer: _BatchNorm, stats: LayerStats) -> float:
    """The standard deviation of `apart` that a healthy layer has, by theory and by this loader.

    Values of one image are not independent, so the spread between the loader's own batches counts
    as well, with the moving average's weight and the audit's own number of batches.
    """
    count = stats.count
    theory = 1 / math.sqrt(worth(layer, count))
    momentum = layer.momentum
    share = momentum / (2 - momentum) if momentum is not None else 0.0
    batches = sum(len(calls) for calls in stats.batches)
    spread = stats.spread(layer.eps)
    measured = 0.0 if math.isnan(spread) else spread * math.sqrt(share + 1 / batches)
    return max(theory, measured)


def threshold(layer: _BatchNorm, stats: LayerStats) -> float:
    """Where `apart` is worth a word: above four standard deviations, and above 0.1."""
    return max(0.1, 4 * noise_floor(layer, stats))


def kept_moments(layer: _BatchNorm) -> Moments | None:
    """The running statistics, float64 on the CPU; None without."""
    if layer.running_mean is None or layer.running_var is None:
        return None
    return Moments(
        layer.running_mean.detach().double().cpu(), layer.running_var.detach().double().cpu()
    )


@dataclass(frozen=True)
class Ratio:
    """A ratio of variances (of channel means) with its standard error over batches."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it differs from 1 by more than SHIFT and more than four standard errors."""
        if not (math.isfinite(self.value) and self.value > 0):
            return False
        error = self.error if math.isfinite(self.error) else 0.0
        return abs(self.value - 1) > max(SHIFT, 4 * error)


def ratio(over: LayerStats, under: LayerStats) -> Ratio:
    """Of two passes over the same batches, with the jackknife's standard error."""
    a, b = over.levels(), under.levels()
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    value = float(a.sum() / b.sum()) if float(b.sum()) > 0 else math.nan
    if size < 2:
        return Ratio(value, math.nan)
    left_out = (a.sum() - a) / (b.sum() - b)
    spread = (left_out - left_out.mean()).square().sum() * (size - 1) / size
    return Ratio(value, float(spread.sqrt()))


def share_of(kept: Moments, seen: Moments, other: Moments) -> tuple[float, float]:
    """How much of `other` is mixed into what should be `seen`, and how well that explains `kept`.

    Least squares of kept = (1 − w)·seen + w·other over all channels' means and variances, in units
    of the seen standard deviation and variance.

    Returns:
        w, and the explained share R² (1 is exact, at most 0 is nothing).
    """
    deviation, direction = _deviation(kept, seen), _deviation(other, seen)
    return fit(deviation, direction)


def _deviation(a: Moments, b: Moments) -> Tensor:
    variance = b.variance.clamp(min=1e-12)
    return torch.cat([(a.mean - b.mean) / variance.sqrt(), (a.variance - b.variance) / variance])


def fit(deviation: Tensor, direction: Tensor) -> tuple[float, float]:
    """Least squares of deviation = w·direction: w and R².

    The tenth that goes furthest is left out: a channel that is all but dead, whose deviation counts
    in units of next to nothing, would decide alone.
    """
    usual = direction.abs() <= torch.quantile(direction.abs(), 0.9)
    deviation, direction = deviation[usual], direction[usual]
    length = float(direction.square().sum())
    total = float(deviation.square().sum())
    if not (length > 0 and total > 0):
        return 0.0, 0.0
    weight = float((deviation * direction).sum()) / length
    rest = float((deviation - weight * direction).square().sum())
    return weight, 1 - rest / total


def deviations(pairs: list[tuple[Moments, Moments]]) -> Tensor:
    """Of several layers, one behind the other."""
    return torch.cat([_deviation(a, b) for a, b in pairs])
