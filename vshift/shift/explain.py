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
from vshift.shift.jackknife import Estimate, Means, Variances, estimate
from vshift.shift.modes import modes, seeded
from vshift.shift.moments import Batches, watching
from vshift.shift.prediction import (
    InputShape,
    cosine,
    delta_a,
    delta_b,
    extra_variance,
    input_shape,
    noise_part,
    noise_variance,
    repeats_values,
)
from vshift.shift.probe import batch_norms, preserved


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
        closed_form: the local ratio by the paper's Δ(p) or Δ(p, d), with c², v and ρ estimated from
            data; NaN where the prediction is not exact, without noise, or with another unit.
        cos2, dcos2: of the layer whose output it normalises; NaN if that is none.
    """

    noises: list[str]
    exact: bool
    total: Estimate
    local: Estimate
    inherited: Estimate
    predicted: Estimate
    excess: Estimate
    closed_form: float
    cos2: float
    dcos2: float


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
        tested: dict[str, Variances] = {}
        with (
            preserved(model),
            watching(batch_norms(model), lambda n, x: tested.setdefault(n, Variances()).add(x)),
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
        self.noisy = {name: Variances() for name in layout.batch_norms}
        self.clean = {name: Variances() for name in layout.batch_norms}
        self.extra = {name: Means() for name in layout.batch_norms}
        self.shapes: dict[str, list[InputShape]] = {name: [] for name in layout.batch_norms}
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
        if _exact(arrivals, self.layout):
            x_noise, linear = self._inputs[arrivals[0].noise], _linear(arrivals[0], self.layout)
            self.shapes[name].append(input_shape(x_noise, linear))
        self.clean[name].add(clean)
        self.extra[name].add(extra, x.numel() // x.shape[1])

    def _extra(self, arrival: Arrival) -> Tensor:
        variance, unit = noise_variance(self.layout.modules[arrival.noise])
        linear = _linear(arrival, self.layout)
        return extra_variance(self._inputs[arrival.noise], variance, unit, linear)

    def closed_form(self, name: str) -> float:
        """Var(train)/Var(test) by the paper's formula for this layer; NaN where it has none."""
        shapes, arrivals = self.shapes[name], self.arrivals[name]
        if not shapes or not arrivals:
            return math.nan
        variance, unit = noise_variance(self.layout.modules[arrivals[0].noise])
        if unit != "element":
            return math.nan
        rate = variance / (1 + variance)
        square, spread, correlation = (
            math.fsum(getattr(shape, key) for shape in shapes) / len(shapes)
            for key in ("square", "variance", "correlation")
        )
        linear = _linear(arrivals[0], self.layout)
        try:
            if linear is None:
                return 1 / delta_a(rate, square, spread)
            return 1 / delta_b(rate, square, spread, correlation, cosine(linear).dcos2)
        except ZeroDivisionError:
            return math.nan


def _predictable(arrivals: list[Arrival], layout: Layout) -> bool:
    """Whether every noise comes once, through at most one linear layer.

    Behind two, a noise's values reach an output along several ways that are correlated; so they
    are where one noise comes twice, and where padding repeats values.
    """
    noises = {arrival.noise for arrival in arrivals}
    once = len(noises) == len(arrivals) and all(len(a.linears) <= 1 for a in arrivals)
    linears = [layout.modules[name] for a in arrivals for name in a.linears]
    return once and not any(repeats_values(linear) for linear in linears)


def _exact(arrivals: list[Arrival] | None, layout: Layout) -> bool:
    return arrivals is not None and len(arrivals) == 1 and _predictable(arrivals, layout)


def _linear(arrival: Arrival, layout: Layout) -> nn.Module | None:
    """The linear layer behind a noise that has at most one."""
    return layout.modules[arrival.linears[0]] if arrival.linears else None


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
    tested: Variances,
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
        exact=arrivals == [] or _exact(arrivals, layout),
        total=estimate(noisy / evaluated),
        local=estimate(noisy / clean),
        inherited=estimate(clean / evaluated),
        predicted=estimate(predicted / clean),
        excess=estimate(noisy / predicted - 1),
        closed_form=trained.closed_form(name),
        cos2=angle.cos2 if angle else math.nan,
        dcos2=angle.dcos2 if angle else math.nan,
    )
