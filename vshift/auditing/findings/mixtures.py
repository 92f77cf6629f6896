"""Running statistics that mix what training shows with something else.

A moving average is linear in what went into it. So the share of the initial values, or of dummy
inputs, can be found by least squares over all channels; or dummy forwards be removed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.evidence import Evidence, standardized_distance
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
            drop_if_no_gain=True,
            initial_share=shares,
            batches_tracked=tracked,
            momentum=momentum,
        )


class MomentumLow(_InitialValues):
    """Initial values that remain because of the momentum."""

    code = "momentum_low"
    title = "momentum is too low for the number of steps"
    causes = "a decay of another framework taken for PyTorch's momentum, which is 1 − decay"
    advice = f"set momentum between 0.01 and 0.1 or to None; {RECALIBRATE}"
    of_low_momentum = True


class InitialBias(_InitialValues):
    """Initial values that remain because of too few steps."""

    code = "initial_bias"
    title = "running statistics still lean towards their initial values"
    causes = "too few training steps since the statistics were (re)set"
    advice = f"train longer, use momentum=None for a simple average, or {RECALIBRATE}"
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

CLEAR = 0.9  # of the deviation explained
EXACT = 0.97  # of it: a mixture that is no accident, harmful or not
MOST_FORWARDS = 12  # more than these are no accident: the statistics are of other inputs
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
    advice = f"call eval() before such forwards; {RECALIBRATE}"

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
            drop_if_no_gain=mixture.explained < EXACT and bool(note),
            note_if_dropped=note,
            inputs=mixture.inputs,
            share=mixture.share,
            forwards=mixture.forwards,
            explained=mixture.explained,
        )


def _find_mixture(evidence: Evidence) -> _Mixture | None:
    """Any share by least squares; otherwise a whole number of forwards."""
    # Dummies reach every layer: those that are within their limit have to fit as well.
    every = [
        n
        for n in evidence.judged
        if n not in evidence.explained_by and n not in evidence.re_estimated
    ]
    dummies = {}
    for inputs, make in DUMMIES.items():
        with evidence.model.mode("train"):
            found = run_pass(
                evidence.model,
                lambda: iter([evidence.train_samples.first()]),
                change_inputs=partial(pytree.tree_map_only, Tensor, make),
            )
        dummies[inputs] = {n: found.stats[n].average() for n in every if n in found.stats}
    best = max(
        (_fit_share(evidence, inputs, moments) for inputs, moments in dummies.items()),
        key=lambda mixture: mixture.explained,
    )
    if best.explained > CLEAR and best.share > 0.02 and best.forwards <= MOST_FORWARDS:
        return best
    # Says more than least squares if training itself left some deviation, or if the dummies'
    # batches were of another size, which deep layers notice.
    counted = [
        mixture
        for inputs, moments in dummies.items()
        for forwards in range(1, MOST_FORWARDS + 1)
        if (mixture := _remove_forwards(evidence, inputs, moments, forwards)) is not None
    ]
    return max(counted, key=lambda mixture: mixture.explained, default=None)


def _fit_share(evidence: Evidence, inputs: str, dummies: Mapping[str, Moments]) -> _Mixture:
    """Any share, by least squares over all layers' channels."""
    if not dummies:
        return _Mixture(inputs, 0.0, 1.0, 0.0)
    train = {name: evidence.train(name) for name in dummies}
    share, explained = _fit(
        torch.cat([_standardize(evidence.running[n], train[n]) for n in dummies]),
        torch.cat([_standardize(dummies[n], train[n]) for n in dummies]),
    )
    momentum = evidence.layers[next(iter(dummies))].momentum
    if momentum is None or not (0 < momentum < 1 and 0 < share < 1):
        forwards = math.inf if share >= 1 else 1.0
    else:
        forwards = math.log(1 - share) / math.log(1 - momentum)
    return _Mixture(inputs, share, forwards, explained)


def _remove_forwards(
    evidence: Evidence, inputs: str, dummies: Mapping[str, Moments], forwards: int
) -> _Mixture | None:
    """The mixture without whose forwards every layer is within its limit, if it is one."""
    shares, left = {}, {}
    for name, dummy in dummies.items():
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
    return _Mixture(inputs, shares[first], float(forwards), 1 - rest**2) if fits else None


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
