"""Findings about running statistics that still hold some of their initial values.

A moving average is linear in what went into it, so the share of the initial values can be read off
by least squares over all channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vshift.auditing.case import Case
from vshift.auditing.causes_buffers import draft, tracked, where
from vshift.auditing.findings import Draft
from vshift.auditing.moments import share_of
from vshift.shift.stats import Moments
from vshift.text import pluralize

LOW_MOMENTUM = 0.05
MARGIN = 1.3  # early batches, before the weights settled, look a little like initial values


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
    return "an unknown number of batches" if steps is None else pluralize(steps, "batch", "batches")


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
