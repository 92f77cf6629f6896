"""Findings about running statistics: why they are not what the layers are trained with.

Pass A names the layers: with batch statistics everywhere, a layer's input does not depend on the
buffers of those before it. Each function explains some of the layers that are off and marks them as
blamed, the specific causes before the general ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vshift.auditing.case import Case, finite
from vshift.auditing.findings import Draft, listed
from vshift.auditing.repairs import Repair
from vshift.shift.stats import Moments

FAR = 0.5  # standard deviations; augmentation of training data makes up to 0.3


def restore(case: Case, layers: Sequence[str]) -> Repair:
    """Re-estimated as they are trained: from batches in training mode."""
    return Repair(
        f"re-estimating {'it' if len(layers) == 1 else f'these {len(layers)}'}",
        statistics={name: case.seen(name) for name in layers},
    )


def draft(
    case: Case,
    code: str,
    layers: Sequence[str],
    what: str,
    minor: bool | str = False,
    **evidence: Any,
) -> Draft:
    """A finding about the buffers of these layers, which are blamed; the furthest off is named."""
    for name in layers:
        case.blamed.setdefault(name, code)
    worst = max(layers, key=lambda n: case.distance.get(n, 0.0))
    numbers = {"distance": case.distance.get(worst), "limit": case.limit.get(worst), **evidence}
    return Draft(code, worst, what, layers, numbers, restore(case, layers), minor)


def where(case: Case, layers: Sequence[str]) -> str:
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
    """Buffers with inf, NaN or a negative variance; the first in forward order is named."""
    bad = [n for n, k in case.kept.items() if not finite(k)]
    if bad:
        found = draft(
            case,
            "nonfinite",
            bad,
            f"The running statistics of {where(case, bad)} hold inf, NaN or a negative variance; "
            f"the first layer in forward order is {bad[0] or 'the model'}.",
            first=bad[0],
        )
        found.layer = bad[0]
        yield found


def never_updated(case: Case) -> Iterator[Draft]:
    """Buffers at exactly mean 0 and variance 1 that pass A does not agree with."""
    layers = [n for n in case.open() if _initial(case.kept[n])]
    if layers:
        momenta = sorted({str(case.layers[n].momentum) for n in layers})
        yield draft(
            case,
            "never_updated",
            layers,
            f"The running statistics of {where(case, layers)} are still exactly mean 0 and "
            f"variance 1, {_far(case, layers)}.",
            momentum=momenta,
            batches_tracked=[tracked(case, n) for n in layers],
        )


def _initial(kept: Moments) -> bool:
    return bool((kept.mean == 0).all() and (kept.variance == 1).all())


def tracked(case: Case, name: str) -> int | None:
    tracked = case.layers[name].num_batches_tracked
    return None if tracked is None else int(tracked)


def stale(case: Case) -> Iterator[Draft]:
    """What is left: the statistics are of other weights or of other inputs."""
    if max((case.distance[n] for n in case.open()), default=0.0) >= FAR:
        yield _stale(case)


def slightly_stale(case: Case) -> Iterator[Draft]:
    """The same, but so little that augmented training data alone could explain it.

    Comes after what noise explains, and counts for what its repair gives back beyond that.
    """
    if case.open():
        yield _stale(case)


def harmless_note(case: Case, layers: Sequence[str]) -> str:
    """What is said of layers that are off without harm where other inputs explain it, or nothing.

    They do where the training inputs are not known, augmented ones say, and the first batch norm is
    off as well: in pass A a layer behind one that fits meets what it met in training.
    """
    far = max(case.distance[n] for n in layers)
    if case.has_train_loader or (far >= FAR and case.judged[0] not in case.off):
        return ""
    return (
        f"the running statistics of {where(case, layers)} are up to {far:.2g} standard "
        "deviations from what these inputs show, which does no measurable harm; training "
        "inputs that are augmented or otherwise different explain it"
    )


def _stale(case: Case) -> Draft:
    layers = case.open()
    kept = [n for n in layers if is_references(case, n)]
    told = f" {len(kept)} of them still hold the reference's buffers." if kept else ""
    simple = [n for n in layers if case.layers[n].momentum is None and tracked(case, n)]
    if simple:
        told += (
            f" Momentum None averages over all {tracked(case, simple[0])} batches since the "
            "statistics were reset, the first of them as much as the last."
        )
    if not case.has_train_loader:
        told += " A training loader would tell other inputs from other weights."
    far = max(case.distance[n] for n in layers)
    return draft(
        case,
        "stale",
        layers,
        f"The running statistics of {where(case, layers)} are {_far(case, layers)}.{told}",
        minor=False if kept and far >= FAR else harmless_note(case, layers) or far < FAR,
        as_reference=kept,
        distances={n: case.distance[n] for n in layers},
    )


def _key(name: str) -> str:
    return f"{name}.running_mean".removeprefix(".")


def is_references(case: Case, name: str) -> bool:
    old = None if case.reference is None else case.reference.get(_key(name))
    return old is not None and torch.equal(old.double().cpu(), case.kept[name].mean)
