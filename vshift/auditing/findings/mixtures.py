"""Running statistics that mix what training shows with something else.

A moving average is linear in what went into it. So the share of the initial values, or of dummy
inputs, can be found by least squares over all channels; or dummy forwards be removed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.distances import standardized_distance
from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import (
    RECALIBRATE,
    BufferCheck,
    CandidateFinding,
    harmless_note,
    which_layers,
)
from vshift.auditing.passes import run_pass
from vshift.auditing.samples import tensors_of
from vshift.shift.stats import Moments
from vshift.text import pluralize

# ---- initial values

LOW_MOMENTUM = 0.05
MARGIN = 1.3  # early batches, before the weights settled, look a little like initial values


class _InitialValues(BufferCheck):
    """Layers that still hold some of mean 0 and variance 1."""

    of_low_momentum: ClassVar[bool]

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        shares = {}
        for name, share in _initial_shares(evidence).items():
            momentum = evidence.layers[name].momentum
            if (momentum is not None and momentum < LOW_MOMENTUM) == self.of_low_momentum:
                shares[name] = share
        if not shares:
            return
        worst = max(shares, key=lambda n: shares[n])
        tracked, momentum = evidence.batches_tracked(worst), evidence.layers[worst].momentum
        batches = (
            "An unknown number of batches"
            if tracked is None
            else pluralize(tracked, "batch", "batches")
        )
        yield self.candidate(
            evidence,
            list(shares),
            f"{100 * shares[worst]:.0f} % of the initial values (mean 0, variance 1) remain in the "
            f"running statistics of {which_layers(evidence, list(shares))}.\n"
            f"{batches} at momentum {momentum} were averaged.",
            least_gain="low",
            initial_share=shares,
            batches_tracked=tracked,
            momentum=momentum,
        )


class MomentumLow(_InitialValues):
    """Initial values that remain because of the momentum."""

    code = "momentum_low"
    title = "momentum is too low for the number of steps"
    causes = "a decay of another framework taken for PyTorch's momentum, which is 1 − decay"
    advice = "set momentum between 0.01 and 0.1 or to None"
    remedy = RECALIBRATE
    of_low_momentum = True


class InitialBias(_InitialValues):
    """Initial values that remain because of too few steps."""

    code = "initial_bias"
    title = "running statistics still lean towards their initial values"
    causes = "too few training steps since the statistics were (re)set"
    advice = "train longer, or use momentum=None for a simple average"
    remedy = RECALIBRATE
    of_low_momentum = False


def _initial_shares(evidence: Evidence) -> dict[str, float]:
    """The share of the initial values by layer, where that explains the layer.

    Not if most layers that tracked as many batches show something else.
    """
    alike: dict[object, list[str]] = {}
    for name in evidence.unexplained():
        key = (evidence.layers[name].momentum, evidence.batches_tracked(name))
        alike.setdefault(key, []).append(name)
    shares: dict[str, float] = {}
    for names in alike.values():
        found = {}
        for name in names:
            train = evidence.train(name)
            initial = Moments(torch.zeros_like(train.mean), torch.ones_like(train.variance))
            share, explained = _fit(
                _standardize(evidence.running[name], train), _standardize(initial, train)
            )
            momentum, tracked = evidence.layers[name].momentum, evidence.batches_tracked(name)
            if momentum is not None and tracked:
                expected = (1 - momentum) ** tracked
                # More than is left after that many batches is something else, like old buffers.
                fits = expected > 0.01 and explained > 0.5 and share < MARGIN * expected + 0.05
            else:
                fits = not tracked and explained > 0.9
            if fits and 0.01 < share < 1.05:
                found[name] = share
        if 2 * len(found) >= len(names):
            shares |= found
    return shares


# ---- dummy inputs

MOST_FORWARDS = 12  # more than these are no accident: the statistics are of other inputs
UNSURE = 3  # forwards that may be estimated too many, as small batches of random numbers are noisy
EXACT = 0.9  # of the deviation explained: a mixture that is no accident, harmful or not
# A share of dummies is a mixture if it leaves at most this multiple of the noise in every layer,
# explains this much of the deviation in units of the noise, and if the layers after the first want
# this part of the first's share: scaled or shifted inputs move the first layer as dummies do, and
# leave the others as they were.
NOISE, EXPLAINED, LATER_SHARE = 2.0, 0.4, 0.4
CLEAR = 0.9  # of the deviation explained, where no later layer confirms it
INEXACT = 0.1  # of what dummies do to a layer: weights moved, batches were of another size
# Without the dummies' forwards: the first layer's distance over that with them; the worst layer's
# over its limit; and the RMS of all over that with them. The first layer decides, as it sees the
# dummies themselves; scaled or shifted inputs leave 0.19 or more of it.
LEFT_AT_FIRST, LEFT_AT_WORST, LEFT = 0.12, 0.8, 0.65

DUMMIES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "normal random numbers": torch.randn_like,
    "uniform random numbers": torch.rand_like,
}
SIZES = (2, 4, 8, 32)  # of the batches of random numbers that are tried; deep layers notice
VALUES, MOST_BATCHES = 4096, 64  # values per channel, and batches, to know what a dummy gives


@dataclass(frozen=True)
class _Dummies:
    """The statistics that batches of dummy inputs give, by layer.

    Attributes:
        inputs: what they are, in words.
        counts: values per channel in a batch; infinite if all batches are the same.
    """

    inputs: str
    moments: Mapping[str, Moments]
    counts: Mapping[str, float]


@dataclass(frozen=True)
class _Mixture:
    """The share of the running statistics, and of their deviation, that dummy inputs explain."""

    inputs: str
    share: float
    forwards: float
    explained: float


class Polluted(BufferCheck):
    """A mixture of what training shows and what dummy inputs give, the same in all layers."""

    code = "polluted"
    title = "running statistics are polluted by artificial inputs"
    causes = (
        "a forward in train mode with dummy inputs: a model summary, a shape probe, a warm-up or "
        "an export"
    )
    advice = "call eval() before such forwards"
    remedy = RECALIBRATE

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layers = [n for n in evidence.unexplained() if not evidence.has_reference_statistics(n)]
        inputs = tensors_of(evidence.train_samples.first().inputs)
        if not layers or not inputs or not all(t.is_floating_point() for t in inputs):
            return
        mixture = _find_mixture(evidence)
        if mixture is None:
            return
        note = harmless_note(evidence, layers)
        yield self.candidate(
            evidence,
            layers,
            f"the running statistics of {which_layers(evidence, layers)} are "
            f"{100 * (1 - mixture.share):.0f} % training data and {100 * mixture.share:.0f} % "
            f"{mixture.inputs}.\n"
            f"{pluralize(max(1, round(mixture.forwards)), 'forward')} of {mixture.inputs} in train "
            f"mode would leave that ({100 * mixture.explained:.0f} % of the deviation explained).",
            least_gain="low" if mixture.explained < EXACT and note else "info",
            note_if_dropped=note,
            inputs=mixture.inputs,
            share=mixture.share,
            forwards=mixture.forwards,
            explained=mixture.explained,
        )


def _find_mixture(evidence: Evidence) -> _Mixture | None:
    """Any share that fits within the noise; otherwise a whole number of forwards."""
    # Dummies reach every layer: those that are within their limit have to fit as well.
    every = [
        n
        for n in evidence.judged
        if n not in evidence.explained_by and n not in evidence.re_estimated
    ]
    dummies = list(_run_dummies(evidence, every))
    found = [mixture for each in dummies if (mixture := _fit_share(evidence, each)) is not None]
    # Says more if training itself left some deviation.
    found = found or [
        mixture
        for each in dummies
        for forwards in range(1, MOST_FORWARDS + 1)
        if (mixture := _remove_forwards(evidence, each, forwards)) is not None
    ]
    return max(found, key=lambda mixture: mixture.explained, default=None)


def _run_dummies(evidence: Evidence, layers: Sequence[str]) -> Iterator[_Dummies]:
    """Every kind of dummy inputs, random ones in batches of several sizes."""
    samples = evidence.train_samples
    first = samples.first()
    sizes = SIZES if samples.rows_are_samples else (first.count,)
    for inputs, make in DUMMIES.items():
        is_random = "random" in inputs
        for size in sizes if is_random else sizes[-1:]:
            batch = first
            if samples.rows_are_samples:
                batch = first.select(partial(_of_size, size))
            fewest = min(evidence.train_stats(n).count for n in layers) * size / first.count
            times = math.ceil(min(VALUES / fewest, MOST_BATCHES)) if is_random else 1
            with evidence.model.mode("train"):
                found = run_pass(
                    evidence.model,
                    partial(repeat, batch, times),
                    change_inputs=partial(pytree.tree_map_only, Tensor, make),
                ).stats
            reached = [n for n in layers if n in found]
            if reached:
                yield _Dummies(
                    inputs,
                    {n: found[n].average() for n in reached},
                    {n: found[n].count if is_random else math.inf for n in reached},
                )


def _of_size(size: int, tensor: Tensor) -> Tensor:
    return tensor[:1].expand(size, *tensor.shape[1:])


def _fit_share(evidence: Evidence, dummies: _Dummies) -> _Mixture | None:
    """The share that fits every layer within the noise, by weighted least squares."""
    names = list(dummies.moments)
    momenta = {evidence.layers[name].momentum for name in names}
    if len(momenta) > 1 or momenta <= {0.0, 1.0}:
        return None
    momentum, tracked = momenta.pop(), evidence.batches_tracked(names[0])
    rows = [_rows(evidence, dummies, name) for name in names]
    layer = torch.cat([torch.full((len(row[0]),), i) for i, row in enumerate(rows)])
    deviation, direction, healthy, sampling = map(torch.cat, zip(*rows, strict=True))
    # A channel that is all but dead deviates in units of next to nothing, and would decide alone.
    usual = direction.abs() <= torch.quantile(direction.abs(), 0.9)
    deviation, direction, layer = deviation[usual], direction[usual], layer[usual]
    share, forwards, noise = 0.5, 0.0, healthy[usual]
    for _ in range(5):  # the noise depends on the share
        if momentum is None:
            forwards = share * (tracked or 1)
            squares = share**2 / max(forwards, 1.0)
        else:
            forwards = math.log(1 - share) / math.log(1 - momentum)
            squares = momentum / (2 - momentum) * (1 - (1 - momentum) ** (2 * forwards))
        noise = (
            (1 - share) ** 2 * healthy[usual]
            + squares * sampling[usual]
            + (INEXACT * share * direction).square()
        )
        share = _share(deviation, direction, noise)
        if not 0.02 < share < 1:
            return None
    rest = deviation - share * direction
    left, before = (_mean_by(x.square() / noise, layer) for x in (rest, deviation))
    whole = 1 - float(rest.square().sum() / deviation.square().sum())
    later = layer > 0
    if later.any():
        later_share = _share(deviation[later], direction[later], noise[later])
        is_confirmed = later_share > LATER_SHARE * share
    else:
        is_confirmed = whole > CLEAR
    fits = float(left.max()) < NOISE and 1 - float(left.sum() / before.sum()) > EXPLAINED
    few = forwards <= MOST_FORWARDS + UNSURE
    return (
        _Mixture(dummies.inputs, share, forwards, whole) if is_confirmed and fits and few else None
    )


def _rows(
    evidence: Evidence, dummies: _Dummies, name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a layer's means and variances [2C], in units of those of the train pass.

    The deviation of the running statistics, what dummies deviate by, and two squares of noise: the
    healthy layer's, and that of one batch of dummies.
    """
    train, dummy, count = evidence.train(name), dummies.moments[name], dummies.counts[name]
    ratio = dummy.variance / train.variance.clamp(min=1e-12)
    floor = torch.full_like(ratio, evidence.noise_floor[name] ** 2)
    return (
        _standardize(evidence.running[name], train),
        _standardize(dummy, train),
        torch.cat([floor, 2 * floor]),
        torch.cat([ratio / count, 2 * ratio.square() / max(count - 1, 1)]),
    )


def _mean_by(values: Tensor, group: Tensor) -> Tensor:
    """The mean of the values of each group; groups are numbered from 0."""
    return torch.bincount(group, weights=values) / torch.bincount(group).clamp(min=1)


def _share(deviation: Tensor, direction: Tensor, noise: Tensor) -> float:
    """The least squares of deviation = share·direction, weighted by 1/noise."""
    length = float((direction.square() / noise).sum())
    return float((deviation * direction / noise).sum()) / length if length > 0 else 0.0


def _remove_forwards(evidence: Evidence, dummies: _Dummies, forwards: int) -> _Mixture | None:
    """The mixture without whose forwards every layer is within its limit, if it is one."""
    shares, left = {}, {}
    for name, dummy in dummies.moments.items():
        momentum = evidence.layers[name].momentum
        if momentum is None or not 0 < momentum < 1:
            return None
        share = shares[name] = 1 - (1 - momentum) ** forwards
        running = evidence.running[name]
        before = Moments(
            (running.mean - share * dummy.mean) / (1 - share),
            ((running.variance - share * dummy.variance) / (1 - share)).clamp(min=0),
        )
        left[name] = standardized_distance(before, evidence.train(name), evidence.layers[name].eps)
    if not left or not any(evidence.distance[name] > 0 for name in left):
        return None
    first = next(iter(left))
    # Root mean squares over layers, in units of their limits.
    rms_left, rms_before = (
        math.sqrt(sum((d[n] / evidence.limit[n]) ** 2 for n in left) / len(left))
        for d in (left, evidence.distance)
    )
    rest = rms_left / rms_before
    fits = (
        left[first] <= LEFT_AT_FIRST * evidence.distance[first]
        and all(left[name] <= LEFT_AT_WORST * evidence.limit[name] for name in left)
        and rest <= LEFT
    )
    return _Mixture(dummies.inputs, shares[first], float(forwards), 1 - rest**2) if fits else None


# ---- least squares


def _standardize(moments: Moments, train: Moments) -> Tensor:
    """Deviations from the train pass, in units of its standard deviation and variance."""
    variance = train.variance.clamp(min=1e-12)
    return torch.cat(
        [
            (moments.mean - train.mean) / variance.sqrt(),
            (moments.variance - train.variance) / variance,
        ]
    )


def _fit(deviation: Tensor, direction: Tensor) -> tuple[float, float]:
    """Least squares of deviation = w·direction: w, and R² (1 is exact, at most 0 is nothing).

    The tenth of the values with the largest direction is left out: a channel that is all but dead,
    whose deviation counts in units of next to nothing, would decide alone.
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
