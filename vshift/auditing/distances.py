"""Distances between running statistics and measured ones, and ratios of variances."""

from __future__ import annotations

import math

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.passes import LayerStats, Pass, rms
from vshift.shift.stats import Estimate, Moments, averaged_batches, jackknife

RELEVANT_CHANGE = 0.05  # relative change of a variance that is worth reporting


def is_usable(moments: Moments) -> bool:
    """Whether a layer can normalise by these: no inf, no NaN, no negative variance."""
    bad = ~moments.mean.isfinite() | ~moments.variance.isfinite() | (moments.variance < 0)
    return not bool(bad.any())


def is_initial(moments: Moments) -> bool:
    """Whether these are exactly a new layer's running statistics."""
    return bool((moments.mean == 0).all() and (moments.variance == 1).all())


def standardized_distance(running: Moments, measured: Moments, eps: float) -> float:
    """Distance of running statistics from measured ones: the larger of two RMS over channels.

    Means: (running − measured)/√(measured variance + eps). Variances: log of the ratio, over √2.
    Both have the standard deviation 1/√n if `running` comes from n independent normal values. NaN
    if not finite.
    """
    scale = (measured.variance + eps).sqrt()
    means = rms((running.mean - measured.mean) / scale)
    variances = rms(((running.variance + eps) / (measured.variance + eps)).log() / math.sqrt(2))
    return math.nan if math.isnan(means) or math.isnan(variances) else max(means, variances)


def effective_sample_size(layer: _BatchNorm, count: int) -> float:
    """n_eff: how many values per channel the running statistics are an average of.

    With momentum m and n values per batch n(2 − m)/m; for a simple average n times the batches.
    """
    momentum = layer.momentum
    if momentum is None:
        tracked = layer.num_batches_tracked
        return count * max(1, int(tracked) if tracked is not None else 1)
    return count * averaged_batches(momentum)


def noise_floor(layer: _BatchNorm, stats: LayerStats) -> float:
    """Standard deviation of the distance in a healthy layer, by theory and by these batches.

    Values of one image are not independent. So the spread between the loader's own batches counts
    as well, with the moving average's weight and the audit's own number of batches.
    """
    theory = 1 / math.sqrt(effective_sample_size(layer, stats.count))
    batches = len(stats)
    if batches < 2:
        return theory
    share = 0.0 if layer.momentum is None else 1 / averaged_batches(layer.momentum)
    spread = max(rms(x) for x in stats.deviations(layer.eps)) * math.sqrt(batches / (batches - 1))
    return max(theory, spread * math.sqrt(share + 1 / batches))


def largest_healthy(floor: float) -> float:
    """The distance above which a layer's buffers are wrong: four standard deviations."""
    return max(0.1, 4 * floor)


def expected_lag(layer: _BatchNorm) -> float:
    """The distance by which healthy running statistics lag behind the weights, roughly.

    Where a learning rate falls linearly to 0 in T steps, (t/T)² of the weights' way is left t steps
    before the end; the whole way changes a layer's statistics by about a standard deviation. In a
    moving average of momentum m the mean of t² is (1 − m)(2 − m)/m², in a simple one T²/3.
    """
    steps = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
    if not steps:
        return 0.0  # not known, and small after a long training
    m = layer.momentum
    if m is None:
        return 1 / 3
    return (1 - m) * (2 - m) / (m * steps) ** 2 if m > 0 else math.inf


def largest_by_chance(layer: _BatchNorm, stats: LayerStats, p: float) -> float:
    """The distance that a healthy layer exceeds with a probability of at most p.

    The square of a distance over its noise floor is a mean of squares over channels. Channels go
    together, so it is as that of ν = tr(Σ)²/tr(Σ²) independent ones (Box 1954), Σ being the
    channels' covariance between batches; and B batches know the floor with ν(B − 1) degrees of
    freedom. So it is F distributed.
    """
    from scipy.special import fdtri

    batches = len(stats)
    if batches < 2:
        return math.inf
    products = [x @ x.T for x in stats.deviations(layer.eps)]
    squares = [float(product.square().sum()) for product in products]
    independent = min(
        (float(p.trace()) ** 2 / s for p, s in zip(products, squares, strict=True) if s > 0),
        default=1.0,
    )
    factor = fdtri(independent, independent * (batches - 1), 1 - p / 2)  # of two, the larger
    return noise_floor(layer, stats) * math.sqrt(factor)


def variance_ratio(over: Pass, under: Pass, name: str) -> Estimate:
    """Ratio of channel-mean variances of two passes over the same batches, with its error."""
    if name not in over.stats or name not in under.stats:
        return Estimate(math.nan, math.nan)
    a, b = over.stats[name].levels(), under.stats[name].levels()
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    value = a.sum() / b.sum() if float(b.sum()) > 0 else torch.full((), math.nan)
    left_out = (a.sum() - a) / (b.sum() - b)
    return jackknife(torch.cat([value.double()[None], left_out]))


def is_clear(ratio: Estimate) -> bool:
    """Whether it differs from 1 by more than RELEVANT_CHANGE and four standard errors."""
    if not (math.isfinite(ratio.value) and ratio.value > 0):
        return False
    error = ratio.error if math.isfinite(ratio.error) else 0.0
    return abs(ratio.value - 1) > max(RELEVANT_CHANGE, 4 * error)
