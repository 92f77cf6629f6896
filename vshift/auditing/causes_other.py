"""Findings about noise before batch norm, eps, inputs, and drift against a reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vshift.auditing.case import Case
from vshift.auditing.findings import Draft, listed
from vshift.auditing.moments import Ratio, apart
from vshift.auditing.repairs import Repair
from vshift.auditing.samples import Samples, tensors_of
from vshift.shift.stats import Moments
from vshift.text import pluralize

# Standard deviations between inputs; augmentation, crops with black borders say, makes up to 0.3.
OTHER_INPUTS = 0.5


def variance_shift(case: Case) -> Iterator[Draft]:
    """Noise changes the variance of a layer's input, which eval mode does not meet."""
    local = {n: r for n, r in case.shifted.items() if n not in case.re_estimated}
    if not local:
        return
    worst = max(local, key=lambda n: abs(math.log(local[n].value)))
    shifted, inherits = local[worst], inheriting(case)
    noises = list(dict.fromkeys(str(s) for n in local for s in case.noise_of(n)))
    here = listed([str(s) for s in case.noise_of(worst)])
    told = _further(local, worst)
    if inherits:
        verb = "inherits" if len(inherits) == 1 else "inherit"
        told += f" {listed(inherits)} only {verb} a shift."
    quiet = case.probes.quiet.stats
    yield Draft(
        "variance_shift",
        worst,
        f"{here} in front of {worst or 'the batch norm'} makes the variance in training "
        f"{shifted.value:.2f} ± {shifted.error:.2f} times that without noise; inherited from "
        f"layers before is a factor {case.inherited(worst).value:.2f}.{told}",
        list(local),
        {
            "noise": [str(s) for s in case.noise_of(worst)],
            "all_noise": noises,
            "local_ratio": {n: r.value for n, r in local.items()},
            "local_ratio_se": {n: r.error for n, r in local.items()},
            "inherited_ratio": {n: case.inherited(n).value for n in local},
            "inherits": inherits,
        },
        Repair(
            "re-estimating all batch norms with noise off",
            statistics={n: quiet[n].average() for n in case.judged if n in quiet},
        ),
    )


def _further(local: Mapping[str, Ratio], worst: str) -> str:
    """How many other layers noise shifts the same way, and how many the other way."""
    up = local[worst].value > 1
    same = sum((ratio.value > 1) == up for ratio in local.values()) - 1
    other = len(local) - 1 - same
    text = f" {_are(same, 'further')} shifted likewise." if same else ""
    return text + (f" {_are(other, 'other')} shifted the other way." if other else "")


def _are(count: int, which: str) -> str:
    return f"{pluralize(count, f'{which} layer')} {'is' if count == 1 else 'are'}"


def inheriting(case: Case) -> list[str]:
    """Layers whose buffers are right and that no noise shifts, yet that meet something else."""
    plain, shifted = case.probes.plain.stats, case.shifted
    return [
        n
        for n in case.judged
        if n not in shifted
        and n not in case.off
        and n in plain
        and not apart(case.kept[n], plain[n].average(), case.layers[n].eps) <= case.limit[n]
    ]


def variance_below_eps(case: Case) -> Iterator[Draft]:
    """Channels, dead ones aside, whose running variance is below eps."""
    found: dict[str, float] = {}
    for name in case.judged:
        eps, seen = case.layers[name].eps, case.seen(name).variance
        alive = seen > 1e-12
        below = (case.kept[name].variance < eps) & alive
        if alive.any() and float(below.sum() / alive.sum()) > 0.05:
            found[name] = float(below.sum() / alive.sum())
    if not found:
        return
    worst = max(found, key=lambda n: found[n])
    eps = case.layers[worst].eps
    other = 1e-5 if eps > 1e-4 else 1e-3
    yield Draft(
        "variance_below_eps",
        worst,
        f"{100 * found[worst]:.0f} % of the channels of {worst or 'the batch norm'} have a running "
        f"variance below eps = {eps:g}: eps decides their scale, and another eps another output.",
        list(found),
        {"share": found, "eps": eps, "median_variance": float(case.kept[worst].variance.median())},
        Repair(f"eps = {other:g}", eps=dict.fromkeys(found, other)),
    )


def input_differs(case: Case) -> Iterator[Draft]:
    """The loader's inputs against the training loader's, channel by channel."""
    if not case.has_train_loader:
        return
    here, there = channel_moments(case.samples), channel_moments(case.probed)
    if here is None or there is None or here.mean.shape != there.mean.shape:
        return
    far = apart(here, there, 1e-12)
    sizes = [tuple(tensors_of(s.given[0].inputs)[0].shape[1:]) for s in (case.samples, case.probed)]
    limit = max(OTHER_INPUTS, 4 / math.sqrt(min(case.samples.count, case.probed.count)))
    if not (far > limit or sizes[0] != sizes[1]):
        return
    ratio = float((here.variance.mean() / there.variance.mean().clamp(min=1e-12)).sqrt())
    moved = float(((here.mean - there.mean) / there.variance.clamp(min=1e-12).sqrt()).abs().max())
    yield Draft(
        "input_differs",
        None,
        f"The loader's inputs have {ratio:.3g} times the standard deviation of the training "
        f"loader's and means up to {moved:.2g} standard deviations away"
        + (f"; shapes {sizes[0]} and {sizes[1]}." if sizes[0] != sizes[1] else "."),
        (),
        {"distance": far, "limit": limit, "shapes": [list(s) for s in sizes]},
        Repair("rescaling each channel to the training loader's", change=_rescaling(here, there)),
    )


def channel_moments(samples: Samples) -> Moments | None:
    """Of the first input, by dimension 1; None where it is not of floats."""
    rows = [tensors_of(batch.inputs)[0] for batch in samples.given]
    if not all(x.is_floating_point() and x.ndim >= 2 for x in rows):
        return None
    values = [x.double().transpose(0, 1).flatten(1).cpu() for x in rows]
    joined = torch.cat(values, 1)
    return Moments(joined.mean(1), joined.var(1, correction=1))


def _rescaling(here: Moments, there: Moments) -> Any:
    scale = (there.variance / here.variance.clamp(min=1e-12)).sqrt()
    shift = there.mean - here.mean * scale

    def one(x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.ndim < 2 or x.shape[1] != len(scale):
            return x
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return (x * scale.to(x).view(shape) + shift.to(x).view(shape)).to(x.dtype)

    return lambda inputs: pytree.tree_map_only(Tensor, one, inputs)


def drift(case: Case) -> Iterator[Draft]:
    """Layers whose own parameters are the reference's, bit for bit, and whose buffers are not."""
    old = {n: m for n in case.kept if (m := _reference(case, n)) is not None}
    far = {n: apart(case.kept[n], old[n], case.layers[n].eps) for n in old if _frozen(case, n)}
    layers = [n for n, d in far.items() if not d <= 0.1 and n not in case.blamed]
    if not layers:
        return
    for name in layers:
        case.blamed[name] = "drift"
    worst = max(layers, key=lambda n: far[n])
    yield Draft(
        "drift",
        worst,
        f"The parameters of {pluralize(len(layers), 'batch norm')} ({listed(layers)}) are the "
        f"reference's, and the running statistics are not: {far[worst]:.2g} standard deviations "
        f"apart at {worst or 'it'}.",
        layers,
        {"distances": {n: far[n] for n in layers}},
        Repair("restoring the reference's buffers", statistics={n: old[n] for n in layers}),
    )


def _reference(case: Case, name: str) -> Moments | None:
    state = case.reference or {}
    mean, variance = (
        state.get(f"{name}.{k}".removeprefix(".")) for k in ("running_mean", "running_var")
    )
    if mean is None or variance is None or mean.shape != case.kept[name].mean.shape:
        return None
    return Moments(mean.detach().double().cpu(), variance.detach().double().cpu())


def _frozen(case: Case, name: str) -> bool:
    state, layer = case.reference or {}, case.layers[name]
    mine = dict(layer.named_parameters(recurse=False))
    theirs = {key: state.get(f"{name}.{key}") for key in mine}
    return bool(mine) and all(
        (old := theirs[key]) is not None and torch.equal(old.cpu(), new.detach().cpu())
        for key, new in mine.items()
    )
