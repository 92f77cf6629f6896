"""For every BN layer: the shift its own noise makes, the shift it inherits, and their product.

Two passes over the same images. In training mode (noise on, BN on batch statistics, buffers left
alone) the noise's part of each BN input is known exactly, because what a noise module added to its
input is known and everything up to the BN is linear: without it the input is what it would be with
only everything upstream switched. The second pass is in eval mode. So, for channel means of
variances pooled over all batches,

    total = Var(train)/Var(eval) = local · inherited
    local = Var(train) / Var(train, own noise taken out)
    inherited = Var(train, own noise taken out) / Var(eval)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vshift.shift.graph import Arrival, Layout
from vshift.shift.modes import modes, seeded
from vshift.shift.moments import Batches, watching
from vshift.shift.prediction import (
    cosine,
    extra_variance,
    noise_part,
    noise_variance,
    repeats_values,
)
from vshift.shift.probe import batch_norms, preserved


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over batches (jackknife); NaN where there is none."""

    value: float
    error: float


@dataclass(frozen=True)
class Explanation:
    """One BN layer. Ratios are training/testing, of channel means of pooled variances.

    Attributes:
        noises: the noise modules that reach it through no other BN.
        exact: whether the prediction is exact: one noise, with at most one linear layer behind it.
        total: what a ratio of running and eval variance estimates; 1 is no shift.
        local: from the noise in front; 1 without, NaN where that noise cannot be followed.
        inherited: from everything before it; NaN likewise.
        predicted: the local ratio from s², weights and the noise-free input alone; NaN behind two
            linear layers. With several noises their covariance is neglected.
        excess: measured less predicted variance in training, relative to the predicted.
        cos2, dcos2: of the layer whose output it normalises; NaN if that is none.
    """

    noises: list[str]
    exact: bool
    total: Estimate
    local: Estimate
    inherited: Estimate
    predicted: Estimate
    excess: Estimate
    cos2: float
    dcos2: float


class _Stack:
    """Per batch: count, mean [C] and sum of squared distances [C], to pool and to leave one out."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.counts: list[int] = []

    def add(self, x: Tensor) -> None:
        x = x if x.dtype == torch.float64 else x.float()
        dims = [d for d in range(x.ndim) if d != 1]
        mean = x.mean(dims, keepdim=True)
        squares = (x - mean).square_().double().sum(dims)
        self.rows.append((mean.flatten().double(), squares))
        self.counts.append(x.numel() // x.shape[1])

    def levels(self) -> Tensor:
        """Channel mean of the pooled variance, over all batches and leaving each out: [1 + B]."""
        mean = torch.stack([row[0] for row in self.rows]).cpu()
        squares = torch.stack([row[1] for row in self.rows]).cpu()
        counts = torch.tensor(self.counts, dtype=torch.float64)[:, None]
        keep = torch.cat([torch.ones(1, len(counts)), 1 - torch.eye(len(counts))]).double()
        total = keep @ counts
        centre = keep @ (counts * mean) / total
        second = keep @ (counts * mean.square())
        return ((keep @ squares + second) / total - centre.square()).mean(1)


class _Means:
    """The same for a plain mean over values, such as s² Σ w² E[x²]."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.counts: list[int] = []

    def add(self, row: Tensor, count: int) -> None:
        self.rows.append(row)
        self.counts.append(count)

    def levels(self) -> Tensor:
        rows = torch.stack(self.rows).cpu()
        counts = torch.tensor(self.counts, dtype=torch.float64)[:, None]
        keep = torch.cat([torch.ones(1, len(counts)), 1 - torch.eye(len(counts))]).double()
        return (keep @ (counts * rows) / (keep @ counts)).mean(1)


def explain(model: nn.Module, batches: Batches, seed: int = 0) -> dict[str, Explanation]:
    """Explain the shift of every BN layer that ran; nothing of the model changes.

    Args:
        batches: called twice; gives the same inputs both times. Two batches at least for
            standard errors; their size should be that of training.
        seed: of the noise.

    Raises:
        ValueError: the model cannot be traced, or there are no batches.
    """
    layout = Layout(model)
    with torch.no_grad():
        trained = _Training(model, layout)
        with seeded(model, seed), modes(model, noise=True, norm="batch"):
            trained.run(batches)
        tested: dict[str, _Stack] = {}
        with (
            preserved(model),
            watching(batch_norms(model), lambda n, x: tested.setdefault(n, _Stack()).add(x)),
        ):
            model.eval()
            for images in batches():
                model(images)
    if not tested:
        raise ValueError("no batches, or no BN layer that ran")
    fronts, linears = layout.noise_in_front(), layout.linear_in_front()
    return {
        name: _explanation(name, trained, stack, fronts[name], linears.get(name), layout)
        for name, stack in tested.items()
        if name in fronts
    }


class _Training:
    """The pass in training mode: BN inputs as they are, without their own noise, and predicted."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self.arrivals = {name: _known(layout, name) for name in layout.batch_norms}
        self.noisy = {name: _Stack() for name in layout.batch_norms}
        self.clean = {name: _Stack() for name in layout.batch_norms}
        self.extra = {name: _Means() for name in layout.batch_norms}
        self._inputs: dict[str, Tensor] = {}
        self._changes: dict[str, Tensor] = {}

    def run(self, batches: Batches) -> None:
        handles = [
            module.register_forward_hook(self._see_noise(name))
            for name, module in self.layout.noises.items()
        ]
        try:
            with watching(batch_norms(self.model), self._see_norm):
                for images in batches():
                    self.model(images)
                    self._inputs.clear()
                    self._changes.clear()
        finally:
            for handle in handles:
                handle.remove()

    def _see_noise(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._inputs[name] = inputs[0]
            self._changes[name] = output.float() - inputs[0].float()

        return hook

    def _see_norm(self, name: str, x: Tensor) -> None:
        if name not in self.noisy:
            return
        self.noisy[name].add(x)
        arrivals = self.arrivals[name]
        if not arrivals:
            return
        clean, extra = x.float().clone(), torch.zeros(x.shape[1], dtype=torch.float64)
        for arrival in arrivals:
            part = noise_part(arrival, self.layout.modules, self._changes[arrival.noise])
            mine = slice(arrival.offset, arrival.offset + part.shape[1])
            clean[:, mine] -= part
            if _predictable(arrivals, self.layout):
                extra[mine] += self._extra(arrival).cpu()
        self.clean[name].add(clean)
        self.extra[name].add(extra, x.numel() // x.shape[1])

    def _extra(self, arrival: Arrival) -> Tensor:
        variance, unit = noise_variance(self.layout.modules[arrival.noise])
        linear = self.layout.modules[arrival.linears[0]] if arrival.linears else None
        return extra_variance(self._inputs[arrival.noise], variance, unit, linear)


def _predictable(arrivals: list[Arrival], layout: Layout) -> bool:
    """Whether every noise comes once, through at most one linear layer.

    Behind two, a noise's values reach an output along several ways that are correlated; so they
    are where one noise comes twice, and where padding repeats values.
    """
    noises = {arrival.noise for arrival in arrivals}
    once = len(noises) == len(arrivals) and all(len(a.linears) <= 1 for a in arrivals)
    linears = [layout.modules[name] for a in arrivals for name in a.linears]
    return once and not any(repeats_values(linear) for linear in linears)


def _known(layout: Layout, name: str) -> list[Arrival] | None:
    """The arrivals at a BN layer if every one of them is noise with a known s²."""
    arrivals = layout.arrivals(name)
    try:
        for arrival in arrivals or []:
            noise_variance(layout.modules[arrival.noise])
    except ValueError:
        return None
    return arrivals


def _explanation(
    name: str,
    trained: _Training,
    tested: _Stack,
    noises: list[str],
    linear: str | None,
    layout: Layout,
) -> Explanation:
    noisy, evaluated = trained.noisy[name].levels(), tested.levels()
    arrivals = trained.arrivals[name]
    unknown = torch.full_like(noisy, math.nan)
    clean, predicted = (noisy, noisy) if arrivals == [] else (unknown, unknown)
    if arrivals:
        clean = trained.clean[name].levels()
        if _predictable(arrivals, layout):
            predicted = clean + trained.extra[name].levels()
    angle = None if linear is None else cosine(layout.modules[linear])
    return Explanation(
        noises=noises,
        exact=arrivals is not None and len(arrivals) <= 1 and _predictable(arrivals, layout),
        total=_estimate(noisy / evaluated),
        local=_estimate(noisy / clean),
        inherited=_estimate(clean / evaluated),
        predicted=_estimate(predicted / clean),
        excess=_estimate(noisy / predicted - 1),
        cos2=angle.cos2 if angle else math.nan,
        dcos2=angle.dcos2 if angle else math.nan,
    )


def _estimate(levels: Tensor) -> Estimate:
    """Value and jackknife standard error from [all, without batch 1, without batch 2, …]."""
    parts = levels[1:]
    if len(parts) < 2:
        return Estimate(float(levels[0]), math.nan)
    spread = (parts - parts.mean()).square().sum() * (len(parts) - 1) / len(parts)
    return Estimate(float(levels[0]), float(spread.sqrt()))
