"""Findings about running statistics that artificial inputs went into.

A moving average is linear in what went into it. So the share of dummy inputs can be read off by
least squares over all channels, or their forwards be taken out again one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.case import Case
from vshift.auditing.causes_buffers import draft, harmless_note, is_references, where
from vshift.auditing.findings import Draft
from vshift.auditing.moments import LayerStats, apart, deviations, fit
from vshift.auditing.probes import run_pass
from vshift.auditing.samples import Batch, tensors_of
from vshift.shift.stats import Moments
from vshift.text import pluralize

CLEAR = 0.9  # of the deviation explained
EXACT = 0.97  # of it: a mix that is no accident, harmful or not
MANY_DUMMIES = 12  # more forwards than these are no accident: the statistics are of other inputs
# Without the dummies' forwards: the first layer's distance, over that with them; the worst layer's
# over its limit; and the root mean square of all, over that with them. The first layer decides, as
# it sees the dummies themselves; scaled or shifted inputs leave 0.19 and more of it.
LEFT_AT_FIRST, LEFT_AT_WORST, LEFT = 0.12, 0.8, 0.65

DUMMIES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "normal random numbers": torch.randn_like,
    "uniform random numbers": torch.rand_like,
}


@dataclass(frozen=True)
class Mix:
    """What dummy inputs explain: their share of the running statistics, and of the deviation."""

    kind: str
    share: float
    forwards: float
    explained: float

    @property
    def clear(self) -> bool:
        return self.explained > CLEAR and self.share > 0.02 and self.forwards <= MANY_DUMMIES


def polluted(case: Case) -> Iterator[Draft]:
    """A mix of what training batches show and what dummy inputs give, the same in all layers."""
    layers = [n for n in case.open() if not is_references(case, n)]
    inputs = tensors_of(next(iter(case.probed.probed())).inputs)
    if not layers or not all(t.is_floating_point() for t in inputs):
        return
    # Dummies reach every layer: those that are not off have to fit as well.
    every = [n for n in case.judged if n not in case.blamed and n not in case.re_estimated]
    given = {kind: _given(case, every, kind) for kind in DUMMIES}
    mix = max((_fitted(case, k, stats) for k, stats in given.items()), key=lambda m: m.explained)
    found = mix if mix.clear else _counted_out(case, given)
    if found is not None:
        yield draft(
            case,
            "polluted",
            layers,
            f"The running statistics of {where(case, layers)} are a mix of "
            f"{100 * (1 - found.share):.0f} % training data and {100 * found.share:.0f} % "
            f"{found.kind}, as {pluralize(max(1, round(found.forwards)), 'forward')} in train mode "
            f"would leave ({100 * found.explained:.0f} % of the deviation explained).",
            minor=found.explained < EXACT and harmless_note(case, layers),
            inputs=found.kind,
            share=found.share,
            forwards=found.forwards,
            explained=found.explained,
        )


def _given(case: Case, layers: list[str], kind: str) -> dict[str, Moments]:
    """What a batch of such inputs shows at these layers."""

    def change(tree: Any) -> Any:
        return pytree.tree_map_only(Tensor, DUMMIES[kind], tree)

    def few() -> Iterator[Batch]:
        yield next(iter(case.probed.probed()))

    with case.subject.mode("as_trained"):
        found: dict[str, LayerStats] = run_pass(case.subject, few, change=change).stats
    return {name: found[name].average() for name in layers if name in found}


def _fitted(case: Case, kind: str, given: Mapping[str, Moments]) -> Mix:
    """Any share, by least squares over all layers' channels."""
    if not given:
        return Mix(kind, 0.0, 1.0, 0.0)
    deviation = deviations([(case.kept[n], case.seen(n)) for n in given])
    direction = deviations([(moments, case.seen(n)) for n, moments in given.items()])
    share, explained = fit(deviation, direction)
    return Mix(kind, share, _forwards(case.layers[next(iter(given))].momentum, share), explained)


def _forwards(momentum: float | None, share: float) -> float:
    """How many forwards in train mode give their inputs this share of the running statistics."""
    if momentum is None or not (0 < momentum < 1 and 0 < share < 1):
        return math.inf if share >= 1 else 1.0
    return math.log(1 - share) / math.log(1 - momentum)


def _counted_out(case: Case, given: Mapping[str, Mapping[str, Moments]]) -> Mix | None:
    """A whole number of forwards without which every layer is within its limit, if there is one.

    Says more than least squares where training itself left some deviation, or where the dummies'
    batches were of another size, which deep layers notice.
    """
    found = [
        mix
        for kind, stats in given.items()
        for count in range(1, MANY_DUMMIES + 1)
        if (mix := _without(case, kind, stats, count)) is not None
    ]
    return max(found, key=lambda mix: mix.explained, default=None)


def _without(case: Case, kind: str, given: Mapping[str, Moments], count: int) -> Mix | None:
    shares, left = {}, {}
    for name, dummy in given.items():
        momentum = case.layers[name].momentum
        if momentum is None or not 0 < momentum < 1:
            return None
        shares[name] = 1 - (1 - momentum) ** count
        kept = _less(case.kept[name], dummy, shares[name])
        left[name] = apart(kept, case.seen(name), case.layers[name].eps)
    if not left or not any(case.distance[name] > 0 for name in left):
        return None
    first = next(iter(left))
    rest = _size(case, left) / _size(case, case.distance, left)
    fits = (
        left[first] <= LEFT_AT_FIRST * case.distance[first]
        and all(left[name] <= LEFT_AT_WORST * case.limit[name] for name in left)
        and rest <= LEFT
    )
    return Mix(kind, shares[first], float(count), 1 - rest**2) if fits else None


def _less(kept: Moments, dummy: Moments, share: float) -> Moments:
    """What was there before the dummies."""
    mean = (kept.mean - share * dummy.mean) / (1 - share)
    variance = (kept.variance - share * dummy.variance) / (1 - share)
    return Moments(mean, variance.clamp(min=0))


def _size(
    case: Case, distances: Mapping[str, float], names: Mapping[str, float] | None = None
) -> float:
    """Root mean square over layers of distances in units of their limits."""
    wanted = list(distances if names is None else names)
    return math.sqrt(sum((distances[n] / case.limit[n]) ** 2 for n in wanted) / len(wanted))
