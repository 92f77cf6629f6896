"""Findings about batches and momentum: what the running statistics are an average over."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vshift.auditing.case import Case
from vshift.auditing.causes_buffers import draft, where
from vshift.auditing.findings import Draft
from vshift.auditing.moments import apart, worth
from vshift.auditing.repairs import Repair
from vshift.shift.stats import Moments

SMALL_WORTH = 100  # n_eff below which the noise floor is above 0.1
HIGH_MOMENTUM = 0.5
USUAL_MOMENTUM = 0.1


def momentum_high(case: Case) -> Iterator[Draft]:
    """Momentum so high that the running statistics are the last batches'."""
    layers = [
        n
        for n in case.judged
        if (case.layers[n].momentum or 0) >= HIGH_MOMENTUM and n not in case.blamed
    ]
    if layers:
        momentum = max(float(case.layers[n].momentum or 0) for n in layers)
        values = min(worth(case.layers[n], case.stats(n).count) for n in layers)
        yield draft(
            case,
            "momentum_high",
            layers,
            f"Momentum is {momentum:g} at {where(case, layers)}: the running statistics are worth "
            f"an average over {_many((2 - momentum) / momentum)} ({values:.0f} values a channel).",
            momentum=momentum,
            values=values,
        )


def tiny_batches(case: Case) -> Iterator[Draft]:
    """So few values a batch that the running statistics are noise."""
    size = case.probed.size
    if size < 2 and not case.has_train_loader:
        return  # batches of one are how many people evaluate, not how they train
    counts = {
        n: max(1, round(case.stats(n).count * size / case.probed.probe_size)) for n in case.judged
    }
    layers = [
        n
        for n, count in counts.items()
        if case.layers[n].momentum and _worth(case, n, count) < SMALL_WORTH
    ]
    if layers:
        worst = min(layers, key=lambda n: _worth(case, n, counts[n]))
        floor = 1 / math.sqrt(_worth(case, worst, counts[worst]))
        yield draft(
            case,
            "tiny_batches",
            layers,
            f"With {size} samples a batch {where(case, layers)} "
            f"{'normalises' if len(layers) == 1 else 'normalise'} by {counts[worst]} "
            f"values a channel: running statistics are off by {floor:.2g} standard deviations from "
            "this noise alone.",
            batch_size=size,
            values=counts[worst],
            expected_noise=floor,
        )


def _many(batches: float) -> str:
    return "1 batch" if f"{batches:.2g}" == "1" else f"{batches:.2g} batches"


def _worth(case: Case, name: str, count: int) -> float:
    """As `worth`, but where momentum is to blame, what the batches are worth at a usual one."""
    layer = case.layers[name]
    if (layer.momentum or 0) < HIGH_MOMENTUM:
        return worth(layer, count)
    return count * (2 - USUAL_MOMENTUM) / USUAL_MOMENTUM


def several_distributions(case: Case) -> Iterator[Draft]:
    """A layer that runs several times in a forward, with statistics that differ by call."""
    for name in case.judged:
        stats = case.stats(name)
        if stats.calls < 2:
            continue
        eps = case.layers[name].eps
        calls = [stats.average(i) for i in range(stats.calls)]
        far = max(apart(a, b, eps) for i, a in enumerate(calls) for b in calls[:i])
        if far > max(0.25, 4 * case.floor[name] * math.sqrt(2)):
            found = draft(
                case,
                "several_distributions",
                [name],
                f"{name or 'The batch norm'} runs {stats.calls} times in a forward, on inputs "
                f"whose statistics differ by {far:.2g} standard deviations between calls.",
                calls=stats.calls,
                between_calls=far,
            )
            quiet = case.probes.quiet.stats.get(name, stats)
            by_call = [quiet.average(i) for i in range(quiet.calls)]
            found.repair = Repair("giving each call its own statistics", by_call={name: by_call})
            yield found


def batches_not_random(case: Case) -> Iterator[Draft]:
    """The running statistics fit the loader's own order, and not the same samples shuffled."""
    if case.as_given is None:
        return
    given = case.as_given.stats
    layers = [
        n
        for n in case.open()
        if n in given
        and apart(case.kept[n], _in_order(case, n), case.layers[n].eps) < 0.7 * case.distance[n]
    ]
    if not layers and not case.has_train_loader:
        case.subject.notes.append(
            f"the loader's batches are no random samples (its batches differ "
            f"{case.order_effect:.1f} times as much as random ones would); the audit shuffled them"
        )
        return
    yield _not_random(case, layers)


def _in_order(case: Case, name: str) -> Moments:
    """What the running statistics would be if training had taken the loader's own order."""
    assert case.as_given is not None
    return case.as_given.stats[name].moving(case.layers[name].momentum)


def _not_random(case: Case, layers: list[str]) -> Draft:
    named = layers or case.judged
    within = {
        n: float(case.as_given.stats[n].average().variance.mean() / case.seen(n).variance.mean())
        for n in named
        if case.as_given is not None and n in case.as_given.stats
    }
    worst = min(within, key=lambda n: within[n], default=None)
    low = within[worst] if worst is not None else math.nan
    what = (
        f"Batches differ {case.order_effect:.1f} times as much as random ones would; within a "
        f"batch the variance at {worst or 'the first layer'} is {100 * low:.0f} % of the whole."
    )
    if not layers:
        return Draft("batches_not_random", None, what, (), {"order_effect": case.order_effect})
    return draft(
        case,
        "batches_not_random",
        layers,
        what,
        order_effect=case.order_effect,
        within_over_pooled=low,
    )
