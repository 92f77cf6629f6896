"""Findings about running statistics that are a mix: of training data, and of something else.

A moving average is linear in what went into it. So the share of the initial values, or of dummy
inputs, can be read off by least squares over all channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.case import Case
from vshift.auditing.causes_buffers import draft, harmless_note, is_references, tracked, where
from vshift.auditing.findings import Draft
from vshift.auditing.moments import deviations, fit, share_of
from vshift.auditing.probes import run_pass
from vshift.auditing.samples import Batch, tensors_of
from vshift.shift.probe import Moments
from vshift.wording import counted

LOW_MOMENTUM = 0.05
MARGIN = 1.3  # early batches, before the weights settled, look a little like initial values
EXACT = 0.97  # of the deviation explained: a mix that is no accident, harmful or not
MANY_DUMMIES = 12  # more forwards than these are no accident: the statistics are of other inputs


def initial_bias(case: Case) -> Iterator[Draft]:
    """A mix of the initial values and what training batches show."""
    few: dict[str, float] = {}
    slow: dict[str, float] = {}
    for name, weight in _initial_shares(case).items():
        momentum = case.layers[name].momentum
        low = momentum is not None and momentum < LOW_MOMENTUM
        (slow if low else few)[name] = weight
    for code, found in (("momentum_low", slow), ("initial_bias", few)):
        if found:
            worst = max(found, key=lambda n: found[n])
            yield draft(
                case,
                code,
                list(found),
                f"{100 * found[worst]:.0f} % of the initial values (mean 0, variance 1) remain in "
                f"the running statistics of {where(case, list(found))}, after "
                f"{_batches(case, worst)} at momentum {case.layers[worst].momentum}.",
                minor=True,
                initial_share=found,
                batches_tracked=tracked(case, worst),
                momentum=case.layers[worst].momentum,
            )


def _batches(case: Case, name: str) -> str:
    steps = tracked(case, name)
    return "an unknown number of batches" if steps is None else counted(steps, "batch", "batches")


def _initial_shares(case: Case) -> dict[str, float]:
    """By layer; where most layers that saw as many batches show something else, it is not that."""
    alike: dict[object, list[str]] = {}
    for name in case.open():
        alike.setdefault((case.layers[name].momentum, tracked(case, name)), []).append(name)
    found: dict[str, float] = {}
    for names in alike.values():
        shares = {n: w for n in names if (w := _initial_share(case, n)) is not None}
        found |= shares if 2 * len(shares) >= len(names) else {}
    return found


def _initial_share(case: Case, name: str) -> float | None:
    """The share of the initial values, if that explains the layer."""
    seen = case.seen(name)
    initial = Moments(torch.zeros_like(seen.mean), torch.ones_like(seen.variance))
    weight, explained = share_of(case.kept[name], seen, initial)
    layer, steps = case.layers[name], tracked(case, name)
    if layer.momentum is not None and steps:
        expected = (1 - layer.momentum) ** steps
        # More than is left of them after so many batches is something else: older buffers, say.
        fits = expected > 0.01 and explained > 0.5 and weight < MARGIN * expected + 0.05
    else:
        fits = not steps and explained > 0.9
    return weight if fits and 0.01 < weight < 1.05 else None


DUMMIES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "normal random numbers": torch.randn_like,
    "uniform random numbers": torch.rand_like,
}


def polluted(case: Case) -> Iterator[Draft]:
    """A mix of what training batches show and what dummy inputs give, the same in all layers."""
    layers = [n for n in case.open() if not is_references(case, n)]
    inputs = tensors_of(next(iter(case.probed.probed())).inputs)
    if not layers or not all(t.is_floating_point() for t in inputs):
        return
    best, share, explained = "", 0.0, 0.0
    # Dummies reach every layer: those that are not off have to fit as well.
    every = [n for n in case.judged if n not in case.blamed and n not in case.re_estimated]
    for kind in DUMMIES:
        weight, good = _dummy_share(case, every, kind)
        if good > explained:
            best, share, explained = kind, weight, good
    passes = _forwards(case, layers, share)
    if explained > 0.9 and share > 0.02 and passes <= MANY_DUMMIES:
        yield draft(
            case,
            "polluted",
            layers,
            f"The running statistics of {where(case, layers)} are a mix of "
            f"{100 * (1 - share):.0f} % training data and {100 * share:.0f} % {best}, as "
            f"{counted(max(1, round(passes)), 'forward')} in train mode would leave "
            f"({100 * explained:.0f} % of the deviation explained).",
            minor=explained < EXACT and harmless_note(case, layers),
            inputs=best,
            share=share,
            forwards=passes,
            explained=explained,
        )


def _forwards(case: Case, layers: list[str], share: float) -> float:
    """How many forwards in train mode give their inputs this share of the running statistics."""
    momentum = case.layers[layers[0]].momentum
    if momentum is None or not (0 < momentum < 1 and 0 < share < 1):
        return math.inf if share >= 1 else 1.0
    return math.log(1 - share) / math.log(1 - momentum)


def _dummy_share(case: Case, layers: list[str], kind: str) -> tuple[float, float]:
    """Share of a kind of dummy input, and how much of all layers' deviation it explains."""

    def change(tree: Any) -> Any:
        return pytree.tree_map_only(Tensor, DUMMIES[kind], tree)

    def few() -> Iterator[Batch]:
        yield next(iter(case.probed.probed()))

    with case.subject.mode("as_trained"):
        found = run_pass(case.subject, few, change=change).stats
    names = [n for n in layers if n in found]
    if not names:
        return 0.0, 0.0
    deviation = deviations([(case.kept[n], case.seen(n)) for n in names])
    direction = deviations([(found[n].average(), case.seen(n)) for n in names])
    return fit(deviation, direction)
