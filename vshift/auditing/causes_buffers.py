"""Findings about running statistics: why they are not what the layers are trained with.

Pass A names the layers: with batch statistics everywhere, a layer's input does not depend on the
buffers of those before it. Each function explains some of the layers that are off and marks them as
blamed, the specific causes before the general ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.case import Case
from vshift.auditing.findings import Draft, listed
from vshift.auditing.moments import apart, deviations, fit, share_of, worth
from vshift.auditing.probes import run_pass
from vshift.auditing.repairs import Repair
from vshift.auditing.samples import Batch, tensors_of
from vshift.shift.probe import Moments

SMALL_WORTH = 100  # n_eff below which the noise floor is above 0.1
HIGH_MOMENTUM = 0.5
LOW_MOMENTUM = 0.05
MANY_DUMMIES = 12  # more forwards than these are no accident: the statistics are of other inputs


def restore(case: Case, layers: Sequence[str]) -> Repair:
    """Re-estimated as they are trained: from batches in training mode."""
    return Repair(
        f"re-estimating {'it' if len(layers) == 1 else f'these {len(layers)}'}",
        statistics={name: case.seen(name) for name in layers},
    )


def _draft(
    case: Case, code: str, layers: Sequence[str], what: str, minor: bool = False, **evidence: Any
) -> Draft:
    """A finding about the buffers of these layers; the one furthest off is named."""
    for name in layers:
        case.blamed.setdefault(name, code)
    worst = max(layers, key=lambda n: case.distance.get(n, 0.0))
    numbers = {"distance": case.distance.get(worst), "limit": case.limit.get(worst), **evidence}
    return Draft(code, worst, what, layers, numbers, restore(case, layers), minor)


def _where(case: Case, layers: Sequence[str]) -> str:
    """For sentences: which of how many layers."""
    if len(layers) == 1:
        return f"{layers[0] or 'the batch norm'}"
    return f"{len(layers)} of {len(case.layers)} batch norms ({listed(layers)})"


def _far(case: Case, layers: Sequence[str]) -> str:
    worst = max(layers, key=lambda n: case.distance[n])
    return (
        f"{case.distance[worst]:.2g} standard deviations from what training batches show at "
        f"{worst or 'it'} (expected noise {case.floor[worst]:.2g})"
    )


def nonfinite(case: Case) -> Iterator[Draft]:
    """Buffers with inf or NaN; the first layer in forward order is named."""
    bad = [
        n
        for n, k in case.kept.items()
        if not (k.mean.isfinite().all() and k.variance.isfinite().all())
    ]
    if bad:
        draft = _draft(
            case,
            "nonfinite",
            bad,
            f"The running statistics of {_where(case, bad)} hold inf or NaN; the first layer in "
            f"forward order is {bad[0] or 'the model'}.",
            first=bad[0],
        )
        draft.layer = bad[0]
        yield draft


def never_updated(case: Case) -> Iterator[Draft]:
    """Buffers at exactly mean 0 and variance 1 that pass A does not agree with."""
    layers = [n for n in case.open() if _initial(case.kept[n])]
    if layers:
        momenta = sorted({str(case.layers[n].momentum) for n in layers})
        yield _draft(
            case,
            "never_updated",
            layers,
            f"The running statistics of {_where(case, layers)} are still exactly mean 0 and "
            f"variance 1, {_far(case, layers)}.",
            momentum=momenta,
            batches_tracked=[_tracked(case, n) for n in layers],
        )


def _initial(kept: Moments) -> bool:
    return bool((kept.mean == 0).all() and (kept.variance == 1).all())


def _tracked(case: Case, name: str) -> int | None:
    tracked = case.layers[name].num_batches_tracked
    return None if tracked is None else int(tracked)


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
        yield _draft(
            case,
            "momentum_high",
            layers,
            f"Momentum is {momentum:g} at {_where(case, layers)}: the running statistics are an "
            f"average over {(2 - momentum) / momentum:.2g} batches ({values:.0f} values a channel).",
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
        if case.layers[n].momentum and worth(case.layers[n], count) < SMALL_WORTH
    ]
    if layers:
        worst = min(layers, key=lambda n: worth(case.layers[n], counts[n]))
        floor = 1 / math.sqrt(worth(case.layers[worst], counts[worst]))
        yield _draft(
            case,
            "tiny_batches",
            layers,
            f"With {size} samples a batch {_where(case, layers)} normalise by {counts[worst]} "
            f"values a channel: running statistics are off by {floor:.2g} standard deviations from "
            "this noise alone.",
            batch_size=size,
            values=counts[worst],
            expected_noise=floor,
        )


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
            draft = _draft(
                case,
                "several_distributions",
                [name],
                f"{name or 'The batch norm'} runs {stats.calls} times in a forward, on inputs whose "
                f"statistics differ by {far:.2g} standard deviations between calls.",
                calls=stats.calls,
                between_calls=far,
            )
            quiet = case.probes.quiet.stats.get(name, stats)
            by_call = [quiet.average(i) for i in range(quiet.calls)]
            draft.repair = Repair("giving each call its own statistics", by_call={name: by_call})
            yield draft


def batches_not_random(case: Case) -> Iterator[Draft]:
    """The running statistics fit the loader's own order, and not the same samples shuffled."""
    if case.as_given is None:
        return
    given = case.as_given.stats
    layers = [
        n
        for n in case.open()
        if n in given
        and apart(case.kept[n], given[n].average(), case.layers[n].eps) < 0.7 * case.distance[n]
    ]
    if not layers and not case.has_train_loader:
        case.subject.notes.append(
            f"the loader's batches are no random samples (its batches differ {case.order_effect:.1f} "
            "times as much as random ones would); the audit shuffled them"
        )
        return
    yield _not_random(case, layers)


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
        f"Batches differ {case.order_effect:.1f} times as much as random ones would; within a batch "
        f"the variance at {worst or 'the first layer'} is {100 * low:.0f} % of the whole."
    )
    if not layers:
        return Draft("batches_not_random", None, what, (), {"order_effect": case.order_effect})
    return _draft(
        case,
        "batches_not_random",
        layers,
        what,
        order_effect=case.order_effect,
        within_over_pooled=low,
    )


def initial_bias(case: Case) -> Iterator[Draft]:
    """A mix of the initial values and what training batches show."""
    few: dict[str, float] = {}
    slow: dict[str, float] = {}
    for name in case.open():
        weight = _initial_share(case, name)
        if weight is not None:
            momentum = case.layers[name].momentum
            low = momentum is not None and momentum < LOW_MOMENTUM
            (slow if low else few)[name] = weight
    for code, found in (("momentum_low", slow), ("initial_bias", few)):
        if found:
            worst = max(found, key=lambda n: found[n])
            yield _draft(
                case,
                code,
                list(found),
                f"{100 * found[worst]:.0f} % of the initial values (mean 0, variance 1) remain in "
                f"the running statistics of {_where(case, list(found))}, after "
                f"{_tracked(case, worst)} batches at momentum {case.layers[worst].momentum}.",
                minor=True,
                initial_share=found,
                batches_tracked=_tracked(case, worst),
                momentum=case.layers[worst].momentum,
            )


def _initial_share(case: Case, name: str) -> float | None:
    """The share of the initial values, if that explains the layer."""
    seen = case.seen(name)
    initial = Moments(torch.zeros_like(seen.mean), torch.ones_like(seen.variance))
    weight, explained = share_of(case.kept[name], seen, initial)
    layer, tracked = case.layers[name], _tracked(case, name)
    if layer.momentum is not None and tracked:
        expected = (1 - layer.momentum) ** tracked
        fits = expected > 0.01 and explained > 0.5
    else:
        fits = not tracked and explained > 0.9
    return weight if fits and 0.01 < weight < 1.05 else None


DUMMIES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "normal random numbers": torch.randn_like,
    "uniform random numbers": torch.rand_like,
}


def polluted(case: Case) -> Iterator[Draft]:
    """A mix of what training batches show and what dummy inputs give, the same in all layers."""
    layers = [n for n in case.open() if not _is_references(case, n)]
    inputs = tensors_of(next(iter(case.probed.probed())).inputs)
    if not layers or not all(t.is_floating_point() for t in inputs):
        return
    best, share, explained = "", 0.0, 0.0
    # Dummies reach every layer: those that are not off have to fit as well.
    every = [n for n in case.judged if n not in case.blamed]
    for kind in DUMMIES:
        weight, good = _dummy_share(case, every, kind)
        if good > explained:
            best, share, explained = kind, weight, good
    passes = _forwards(case, layers, share)
    if explained > 0.9 and share > 0.02 and passes <= MANY_DUMMIES:
        yield _draft(
            case,
            "polluted",
            layers,
            f"The running statistics of {_where(case, layers)} are a mix of {100 * (1 - share):.0f} "
            f"% training data and {100 * share:.0f} % {best}, as {max(1, round(passes))} forwards "
            f"in train mode would leave ({100 * explained:.0f} % of the deviation explained).",
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


def stale(case: Case) -> Iterator[Draft]:
    """What is left: the statistics are of other weights or of other inputs."""
    layers = case.open()
    if not layers:
        return
    kept = [n for n in layers if _is_references(case, n)]
    told = f" {len(kept)} of them still hold the reference's buffers." if kept else ""
    far = max(case.distance[n] for n in layers)
    yield _draft(
        case,
        "stale",
        layers,
        f"The running statistics of {_where(case, layers)} are {_far(case, layers)}.{told}",
        minor=far < 0.5,
        as_reference=kept,
        distances={n: case.distance[n] for n in layers},
    )


def _is_references(case: Case, name: str) -> bool:
    old = None if case.reference is None else case.reference.get(f"{name}.running_mean")
    return old is not None and torch.equal(old.double().cpu(), case.kept[name].mean)
