"""The shift of every BN layer, split into a local and an inherited factor, and predicted.

Two passes over the same images. In training mode (noise on, BN on batch statistics, buffers left
alone) the noise's part of each BN input is known exactly, because the change by a noise module of
its input is known and everything up to the BN is linear: without it the input is what it would be
with only everything upstream switched. The second pass is in eval mode. So, for channel means of
variances pooled over all batches,

    total = Var(train)/Var(eval) = local · inherited
    local = Var(train) / Var(train, own noise taken out)
    inherited = Var(train, own noise taken out) / Var(eval)

The local factor is also predicted. For independent multiplicative noise m with E m = 1 and
Var m = s², and X = Σᵢ wᵢ mᵢ xᵢ + (anything that does not depend on m), over the same distribution
of the noise-free x,

    Var(X with noise) = Var(X without) + s² · Σᵢ wᵢ² E[xᵢ²]

exactly; noise directly in front of BN is the case w = 1. With one multiplier per channel the extra
term is s² · Σ_c E[(Σ_k w_ck x_ck)²], with one per image s² · E[(Σᵢ wᵢ xᵢ)²]. Variances are those
over all images and positions, so padding, stride and groups are handled by taking the sums with the
layer's own convolution.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.networks.noise import Multiplicative, Noise
from vshift.shift.comparison import Passes, run_passes
from vshift.shift.noise_graph import NoiseGraph, NoisePath
from vshift.shift.sites import bn_sites
from vshift.shift.stats import (
    Batches,
    Estimate,
    InputStats,
    batch_norms,
    capturing_inputs,
    jackknife,
    leave_one_out,
)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Decomposition:
    """The shift of one BN layer. Ratios are train/eval, of channel means of pooled variances.

    Attributes:
        noises: the noise modules that reach it through no other BN.
        exact: whether the prediction is exact: one noise per channel, followed by at most one
            linear layer.
        total: what a ratio of running and eval variance estimates; 1 is no shift.
        local: from the noise in front; 1 without, NaN where that noise cannot be followed.
        inherited: from everything before it; NaN likewise.
        predicted: the local ratio from s², weights and the noise-free input alone; NaN after two
            linear layers. With several noises their covariance is neglected.
        excess: measured less predicted variance in training, relative to the predicted.
        closed_form: the local ratio by the paper's Δ(p) or Δ(p, d), with c², v and ρ estimated from
            data; NaN where the prediction is not exact, without noise, or with another unit.
        cos2, dcos2: of the layer whose output it normalises; NaN if there is none.
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


@torch.no_grad()
def decompose(model: nn.Module, batches: Batches, seed: int = 0) -> dict[str, Decomposition]:
    """Decompose the shift of every BN layer that ran; the model does not change.

    Args:
        batches: called once per pass; gives the same inputs every time. Two batches at least for
            standard errors; their size should be that of training.
        seed: of the noise.

    Raises:
        ValueError: the model cannot be traced, or there are no batches.
    """
    decomposer = Decomposer(model)
    sites = bn_sites(model)
    passes = run_passes(model, batches, sites, seed, decomposer.observing())
    return decomposer.compare(passes)


class Decomposer:
    """Takes the noise out of every BN layer's input while the train pass runs.

    Raises:
        ValueError: the model cannot be traced.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.graph = model, NoiseGraph(model)
        self.layers = {name: _TrainingInput(self.graph, name) for name in self.graph.batch_norms}

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the forwards inside, of the train pass."""
        noised: _Noised = defaultdict(list)  # in the present batch
        # Copies, as the noise or what comes later may work in place.
        sources: dict[str, Tensor] = {}

        def capture_noise(name: str, output: Tensor) -> None:
            source = sources.pop(name)
            noised[name].append((source, output.float() - source.float()))

        def capture_input(name: str, x: Tensor) -> None:
            if name in self.layers:
                self.layers[name].add(x, noised)

        handles = []
        for name, module in self.graph.noises.items():
            handles += [
                module.register_forward_pre_hook(
                    lambda _, args, name=name: sources.update({name: args[0].clone()})
                ),
                module.register_forward_hook(
                    lambda _, args, output, name=name: capture_noise(name, output)
                ),
            ]
        handles.append(self.model.register_forward_hook(lambda *_: noised.clear()))
        try:
            with capturing_inputs(batch_norms(self.model), capture_input):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def compare(self, passes: Passes) -> dict[str, Decomposition]:
        """The decomposition of every BN layer that ran, given the passes."""
        noises, linears = self.graph.noise_in_front(), self.graph.linear_in_front()
        decompositions = {}
        for name, stats in passes.eval.items():
            if name in self.layers:
                angle = cosine(self.graph.modules[linears[name]]) if name in linears else _NO_ANGLE
                decompositions[name] = self.layers[name].compare(
                    passes.train[name], stats, noises[name], angle
                )
        return decompositions


# Noise module → for each call in a forward pass its input, and its change of it.
_Noised = dict[str, list[tuple[Tensor, Tensor]]]


class _TrainingInput:
    """Accumulates a BN layer's input in training mode: with and without its own noise.

    Attributes:
        paths: of its own noise; empty without, None where that noise cannot be followed or has no
            known s².
        predictable: whether every noise arrives once, through at most one linear layer. After two,
            a noise's values reach an output along several paths that are correlated; so they are
            where one noise arrives twice, and where padding repeats values.
    """

    def __init__(self, graph: NoiseGraph, name: str) -> None:
        self.modules = graph.modules
        self.paths = graph.paths_to(name)
        try:
            self.noises = [noise_variance(self.modules[p.noise]) for p in self.paths or []]
        except ValueError:
            self.paths = None
        paths = self.paths or []
        self.predictable = (
            self.paths is not None
            and len({(path.noise, path.call) for path in paths}) == len(paths)
            and all(len(path.linears) <= 1 for path in paths)
            and not any(repeats_values(self.modules[n]) for path in paths for n in path.linears)
        )
        self.exact = self.predictable and not any(
            one.meets(other) for one, other in itertools.combinations(paths, 2)
        )
        self.clean = InputStats()
        self.extra: list[Tensor] = []
        self.shapes: list[InputShape] = []

    def add(self, x: Tensor, noised: _Noised) -> None:
        """Add a batch, given what each noise did in it."""
        if not self.paths:
            return
        clean, extra = x.float().clone(), torch.zeros(x.shape[1], dtype=torch.float64)
        for path, (variance, unit) in zip(self.paths, self.noises, strict=True):
            source, change = noised[path.noise][path.call]
            part = noise_part(path, self.modules, change)
            channels = slice(path.offset, path.offset + part.shape[1])
            clean[:, channels] -= part
            if self.predictable:
                extra[channels] += extra_variance(source, variance, unit, self._linear(path)).cpu()
            if self.exact and len(self.paths) == 1:
                self.shapes.append(input_shape(source, self._linear(path)))
        self.clean.add(clean)
        self.extra.append(extra)

    def _linear(self, path: NoisePath) -> nn.Module | None:
        """The linear layer after a noise that has at most one."""
        return self.modules[path.linears[0]] if path.linears else None

    def compare(
        self, train: InputStats, evaluated: InputStats, noises: list[str], angle: Cosine
    ) -> Decomposition:
        """The decomposition, given the same layer's input in training and in eval mode."""
        noisy, tested = train.leave_one_out(), evaluated.leave_one_out()
        clean = predicted = torch.full_like(noisy, math.nan)
        if self.paths == []:
            clean = predicted = noisy
        elif self.paths:
            clean = self.clean.leave_one_out()
            if self.predictable:
                counts = torch.tensor(self.clean.counts, dtype=torch.float64)[:, None]
                extra = leave_one_out(counts * torch.stack(self.extra)) / leave_one_out(counts)
                predicted = clean + extra.mean(1)
        return Decomposition(
            noises=noises,
            exact=self.exact,
            total=jackknife(noisy / tested),
            local=jackknife(noisy / clean),
            inherited=jackknife(clean / tested),
            predicted=jackknife(predicted / clean),
            excess=jackknife(noisy / predicted - 1),
            closed_form=self._closed_form(),
            cos2=angle.cos2,
            dcos2=angle.dcos2,
        )

    def _closed_form(self) -> float:
        """Var(train)/Var(eval) by the paper's formula for this layer; NaN where it has none."""
        if not self.shapes or not self.paths:
            return math.nan
        variance, unit = self.noises[0]
        if unit != "element":
            return math.nan
        rate = variance / (1 + variance)
        square, spread, correlation = (
            math.fsum(getattr(shape, key) for shape in self.shapes) / len(self.shapes)
            for key in ("square", "variance", "correlation")
        )
        linear = self._linear(self.paths[0])
        try:
            if linear is None:
                return 1 / delta_a(rate, square, spread)
            return 1 / delta_b(rate, square, spread, correlation, cosine(linear).dcos2)
        except ZeroDivisionError:
            return math.nan


def noise_variance(module: nn.Module) -> tuple[float, str]:
    """s² and the unit (`element`, `channel`, `sample`) of a noise module of ours or PyTorch's.

    Raises:
        ValueError: not independent multiplicative noise of mean 1 that is the identity in eval
            mode (alpha dropout and DropBlock, for instance).
    """
    if isinstance(module, Multiplicative):
        return module.variance, module.unit
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) and module.p < 1:
        unit = "element" if isinstance(module, nn.Dropout) else "channel"
        return module.p / (1 - module.p), unit
    variance = getattr(module, "variance", None)  # one's own
    if isinstance(module, Noise) and isinstance(variance, int | float):
        return float(variance), getattr(module, "unit", "element")
    raise ValueError(f"{type(module).__name__} is not independent multiplicative noise of mean 1")


@torch.no_grad()
def extra_variance(x: Tensor, variance: float, unit: str, linear: nn.Module | None) -> Tensor:
    """s² Σ wᵢ² E[xᵢ²] of every channel: what noise on `x` adds to the variance after `linear`.

    Args:
        x: what the noise multiplies, [N, C] or [N, C, H, W].
        variance: s².
        unit: `element`, `channel` or `sample`.
        linear: the convolution or fc layer after the noise, None for noise right before BN.

    Returns:
        float64 [channels after `linear`].

    Raises:
        ValueError: the layer pads by repeating values, so that one multiplier counts twice.
    """
    if repeats_values(linear):
        raise ValueError(f"no formula for padding_mode {linear.padding_mode}")  # type: ignore[union-attr]
    x = x.double() if x.dtype == torch.float64 else x.float()
    if linear is None:
        return variance * _channel_mean(x.square())
    weight = linear.get_parameter("weight")
    if unit == "channel" and isinstance(linear, Convolution):
        # Σ_c E[(Σ_k w_ck x_ck)²] for every output channel, one input channel at a time.
        inputs, outputs = x.shape[1] // linear.groups, linear.out_channels // linear.groups
        total = torch.zeros(linear.out_channels, dtype=torch.float64, device=x.device)
        for channel in range(x.shape[1]):
            group, inside = divmod(channel, inputs)
            outs = slice(group * outputs, (group + 1) * outputs)
            part = _apply(linear, x[:, [channel]], weight[outs, [inside]], groups=1)
            total[outs] += _channel_mean(part.square())
        return variance * total
    if unit == "sample":
        return variance * _channel_mean(_apply(linear, x, weight).square())
    return variance * _channel_mean(_apply(linear, x.square(), weight.square()))


def _channel_mean(x: Tensor) -> Tensor:
    return x.mean([d for d in range(x.ndim) if d != 1]).double()


def _apply(linear: nn.Module, x: Tensor, weight: Any, groups: int | None = None) -> Tensor:
    """The layer's own convolution or product without its bias, with another weight."""
    weight = weight.to(x.dtype)
    if isinstance(linear, nn.Linear):
        return F.linear(x, weight)
    assert isinstance(linear, Convolution)
    padding: Any = linear.padding
    if repeats_values(linear):
        repeated = linear._reversed_padding_repeated_twice
        x, padding = F.pad(x, repeated, mode=linear.padding_mode), 0
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    groups = groups or linear.groups
    return convolve(x, weight, None, linear.stride, padding, linear.dilation, groups)


def repeats_values(linear: nn.Module | None) -> bool:
    """Whether a convolution pads with copies of its input instead of zeros."""
    return isinstance(linear, Convolution) and linear.padding_mode != "zeros"


@torch.no_grad()
def noise_part(path: NoisePath, modules: dict[str, nn.Module], change: Tensor) -> Tensor:
    """The change of a BN's input by a noise in one forward, given its change of its own input."""
    for name in path.linears:
        change = _apply(modules[name], change, modules[name].weight)
    return change


@dataclass(frozen=True)
class Cosine:
    """cos²θ between a layer's filters and the all-ones vector, mean over filters, and d·cos²θ.

    cos²θ = (Σw)²/(d Σw²), d = (in_channels/groups)·k² (Li et al. 2019, section 3.2).
    """

    cos2: float
    dcos2: float


_NO_ANGLE = Cosine(math.nan, math.nan)


@torch.no_grad()
def cosine(linear: nn.Module) -> Cosine:
    """cos²θ of a convolution or fc layer; filters of zeros are left out."""
    weight = linear.get_parameter("weight").detach().double().flatten(1)
    squares = weight.square().sum(1)
    dcos2 = (weight.sum(1).square() / squares)[squares > 0]
    if not len(dcos2):
        return _NO_ANGLE
    return Cosine(float(dcos2.mean()) / weight.shape[1], float(dcos2.mean()))


def delta_a(rate: float, square: float, variance: float) -> float:
    """Case (a), noise directly before BN: Var_test/Var_train = v / ((1/p)(c² + v) − c²).

    Li et al. 2019, section 3.1, with p = 1 − rate; `square` is c² and `variance` v of the
    noise-free input.
    """
    return variance / ((square + variance) / (1 - rate) - square)


def delta_b(rate: float, square: float, variance: float, correlation: float, dcos2: float) -> float:
    """Case (b), noise, then a convolution or fc layer, then BN: Δ(p, d) of Li et al. 2019.

    [vρ + v(1−ρ)/(d cos²θ)] / [vρ + ((1/p−1)c² + v(1/p−ρ))/(d cos²θ)], p = 1 − rate: for inputs that
    share c², variance v and correlation ρ, which holds for data only approximately.
    """
    p, v = 1 - rate, variance
    tested = v * correlation + v * (1 - correlation) / dcos2
    noise = ((1 / p - 1) * square + v * (1 / p - correlation)) / dcos2
    return tested / (v * correlation + noise)


@dataclass(frozen=True)
class InputShape:
    """c², v and ρ of a layer's inputs, as the paper's closed forms take them: one number each."""

    square: float
    variance: float
    correlation: float


@torch.no_grad()
def input_shape(x: Tensor, linear: nn.Module | None = None) -> InputShape:
    """Estimate c², v and ρ from data: the averages over channels of (E x)² and Var x, and

    ρ, the mean correlation between the d inputs of one filter, from the variance of their sum:
    Var(Σxᵢ) = d·v + d(d − 1)·ρ·v. Without a layer ρ is 0.

    Args:
        x: [N, C] or [N, C, H, W], what the noise multiplies.
    """
    x = x.float()
    dims = [d for d in range(x.ndim) if d != 1]
    square = float(x.mean(dims).square().mean())
    variance = float(x.var(dims, correction=0).mean())
    if linear is None or variance == 0:
        return InputShape(square, variance, 0.0)
    weight = linear.get_parameter("weight")
    size = weight[0].numel()
    ones = torch.ones_like(weight[: getattr(linear, "groups", 1)])  # one filter per group
    sums = inside = _apply(linear, x, ones)
    if isinstance(linear, Convolution):
        # Only sums whose filter lies inside the image: the zeros of padding are no inputs.
        for dim, (kernel, stride) in enumerate(zip(linear.kernel_size, linear.stride, strict=True)):
            width, edge = inside.shape[dim + 2], -(-(kernel // 2) // stride)
            inside = inside.narrow(dim + 2, min(edge, width), max(0, width - 2 * edge))
    total = inside if inside.numel() else sums
    sum_variance = float(total.double().var(correction=0))
    correlation = (sum_variance / (size * variance) - 1) / max(size - 1, 1)
    return InputShape(square, variance, correlation)
