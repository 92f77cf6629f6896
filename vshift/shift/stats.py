"""Statistics of the inputs of BN layers: measured over batches, running, and their ratio.

Three variances of the same input (Li et al. 2019, section 4): `train`, of training batches;
`running`, what the layer's moving average holds; `eval`, with the whole network in eval mode. All
are UNBIASED batch variances, so that they are comparable: normalisation itself uses the
biased one.

Within a batch the mean and then the squared distances from it are taken in float32 or better, as
E[x²] − E[x]² cancels. Batches are merged in float64 by the rule of Chan, Golub & LeVeque (1979),
which holds for batches of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.norm import BatchNorm
from vshift.shift.sites import Site, bn_sites, capturing, watch

# Called once per pass over the data; gives the same inputs in the same order every time.
Batches = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every channel, float64 [C] on the CPU."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class PooledMoments:
    """One layer's input over several batches; tensors are float64 [C] on the CPU.

    Attributes:
        mean: of all values of a channel, whichever batch they came in.
        variance: UNBIASED variance of all values, the spread between batch means included;
            NaN for a single value.
        biased_variance: the same sum of squares over `count` instead of `count` − 1.
        average_mean: the average of the batches' means, each batch with the same weight.
        average_variance: the average of the batches' UNBIASED variances, without the spread between
            batch means: what a moving average estimates. Batches of a single value have none and
            are left out; NaN if there is no other.
        count: number of values per channel, n.
        batches: number of batches.
        standard_error: of the channel mean of `average_variance`, from its spread between batches;
            NaN for fewer than two batches.
    """

    mean: Tensor
    variance: Tensor
    biased_variance: Tensor
    average_mean: Tensor
    average_variance: Tensor
    count: int
    batches: int
    standard_error: float


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over batches; NaN where there is none."""

    value: float
    error: float


class InputStats:
    """Accumulates the moments of one layer's input, batch by batch.

    They stay on the input's device, without a synchronisation, until a result is asked for.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add a batch [N, C, …]; an empty one changes nothing."""
        if x.numel() == 0:
            return
        mean, variance = batch_moments(x)
        self.counts.append(x.numel() // x.shape[1])
        self._means.append(mean)
        self._variances.append(variance)

    def copy(self) -> InputStats:
        """What was accumulated so far; later batches are not added to it."""
        copied = InputStats()
        copied.counts, copied._means = self.counts.copy(), self._means.copy()
        copied._variances = self._variances.copy()
        return copied

    def _stacked(self) -> tuple[Tensor, Tensor]:
        if not self.counts:
            raise ValueError("no batches to take statistics of")
        return torch.stack(self._means).cpu(), torch.stack(self._variances).cpu()

    def means(self) -> Tensor:
        """The mean of every batch, float64 [B, C] on the CPU."""
        return self._stacked()[0]

    def unbiased(self) -> Tensor:
        """The UNBIASED variance of every batch, float64 [B, C] on the CPU; NaN for one value."""
        counts = torch.tensor(self.counts, dtype=torch.float64)[:, None]
        return self._stacked()[1] * counts / (counts - 1)

    def pooled(self) -> PooledMoments:
        """The moments over all batches so far; ValueError without any."""
        means, variances = self._stacked()
        mean = squares = torch.zeros_like(means[0])
        count = 0
        for batch_mean, variance, n in zip(means, variances, self.counts, strict=True):
            total = count + n
            step = batch_mean - mean
            squares = squares + (variance * n + step.square() * (count * n / total))
            mean = mean + step * (n / total)
            count = total
        sizes = zip(variances, self.counts, strict=True)
        unbiased = [variance * (n / (n - 1)) for variance, n in sizes if n > 1]
        undefined = torch.full_like(mean, math.nan)
        error = math.nan
        if len(unbiased) > 1:
            spread = torch.stack([variance.mean() for variance in unbiased]).std(correction=1)
            error = float(spread) / math.sqrt(len(unbiased))
        return PooledMoments(
            mean=mean,
            variance=squares / (count - 1) if count > 1 else undefined,
            biased_variance=squares / count,
            average_mean=torch.as_tensor(sum(means)) / len(means),
            average_variance=(
                torch.as_tensor(sum(unbiased)) / len(unbiased) if unbiased else undefined
            ),
            count=count,
            batches=len(means),
            standard_error=error,
        )

    def leave_one_out(self) -> Tensor:
        """Channel mean of the pooled variance: of all batches, then without each, [1 + B]."""
        mean, variance = self._stacked()
        counts = torch.tensor(self.counts, dtype=torch.float64)[:, None]
        total = leave_one_out(counts)
        centre = leave_one_out(counts * mean) / total
        square = leave_one_out(counts * variance) + leave_one_out(counts * mean.square())
        return (square / total - centre.square()).mean(1)


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and BIASED variance of every channel of [N, C, …], float64 [C]."""
    x = x if x.dtype == torch.float64 else x.float()
    dims = [d for d in range(x.ndim) if d != 1]
    # Seven times as fast on a CPU as torch.var_mean over these dimensions.
    mean = x.mean(dims, keepdim=True)
    variance = (x - mean).square_().mean(dims)
    return mean.flatten().double(), variance.double()


def leave_one_out(rows: Tensor) -> Tensor:
    """Sums over float64 rows [B, …]: of all, then without each one, [1 + B, …]."""
    every = torch.ones(1, len(rows), dtype=torch.float64)
    return torch.cat([every, 1 - torch.eye(len(rows), dtype=torch.float64)]) @ rows


def jackknife(values: Tensor) -> Estimate:
    """Value and standard error from [of all batches, without the first, without the second, …].

    With fewer than two batches the error is NaN.
    """
    left_out = values[1:]
    n = len(left_out)
    if n < 2:
        return Estimate(float(values[0]), math.nan)
    variance = (left_out - left_out.mean()).square().sum() * (n - 1) / n
    return Estimate(float(values[0]), float(variance.sqrt()))


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every BN layer that keeps running statistics, by name, in the order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    }


def layer_running_moments(layer: _BatchNorm) -> Moments | None:
    """A layer's running statistics, float64 on the CPU; None if it keeps none."""
    if layer.running_mean is None or layer.running_var is None:
        return None
    return Moments(to_float64(layer.running_mean), to_float64(layer.running_var))


def running_moments(model: nn.Module) -> dict[str, Moments]:
    """The running statistics of every BN layer."""
    moments = {name: layer_running_moments(layer) for name, layer in batch_norms(model).items()}
    return {name: running for name, running in moments.items() if running is not None}


def averaged_batches(momentum: float) -> float:
    """How many batches a moving average counts as: (2 − m)/m with momentum m; infinite for 0.

    The variance of Σ m(1 − m)ᵏ xₖ over independent xₖ is m/(2 − m) times that of one.
    """
    return (2 - momentum) / momentum if momentum > 0 else math.inf


def to_float64(tensor: Tensor | None) -> Tensor:
    """A buffer on the CPU in float64."""
    assert tensor is not None
    return tensor.detach().to("cpu", torch.float64)


@contextmanager
def capturing_inputs(
    layers: Mapping[str, nn.Module], callback: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `callback(name, input)` whenever a layer is about to run; removes its hooks on exit."""

    def register(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_pre_hook(lambda _, inputs: callback(name, inputs[0]))

    handles = [register(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def pooled_moments(
    model: nn.Module,
    batches: Batches,
    limit: int | None = None,
    sites: Sequence[Site] | None = None,
) -> dict[str, PooledMoments]:
    """Statistics of every site, in one pass, in the model's present mode.

    Choose the mode with `vshift.shift.modes.modes`; a BN layer in training mode moves its buffers.

    Args:
        batches: called once; inputs as the model takes them.
        limit: use only this number of batches.
        sites: by default the inputs of the BN layers that keep running statistics.

    Returns:
        Sites by name, in the order in which they were first reached; those that never were are
        left out, and a layer that ran several times in a forward has all its inputs pooled.
    """
    limited = islice(batches(), limit)
    return {name: stats.pooled() for name, stats in site_stats(model, limited, sites).items()}


def site_stats(
    model: nn.Module, batches: Iterable[Tensor], sites: Sequence[Site] | None = None
) -> dict[str, InputStats]:
    """As `pooled_moments`, with what was accumulated."""
    with collecting_stats(model, sites) as found:
        for images in batches:
            model(images)
    return found


@contextmanager
def collecting_stats(
    model: nn.Module, sites: Sequence[Site] | None = None
) -> Iterator[dict[str, InputStats]]:
    """Accumulate, by site, the statistics of every forward inside."""
    found: dict[str, InputStats] = {}

    def add(site: Site, x: Tensor) -> None:
        found.setdefault(site.name, InputStats()).add(x)

    with capturing(model, bn_sites(model) if sites is None else sites, add):
        yield found


class TrainingLog:
    """Sums the batch statistics of every site of a network, without a synchronisation.

    A `vshift.networks.BatchNorm` wrote its batch's statistics when it ran; at other sites a hook
    takes them from the values, in training mode only. Call `add` after each training step and
    `compute_and_reset` once per epoch.

    Args:
        sites: by default the BN layers that keep running statistics.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site] | None = None) -> None:
        self.sites = bn_sites(model) if sites is None else list(sites)
        means, variances, others = [], [], {}
        for site in self.sites:
            if isinstance(site.module, BatchNorm):
                mean, variance = site.module.batch_mean, site.module.batch_var
            else:
                device = next(model.parameters()).device
                mean, variance = (torch.zeros(site.channels, device=device) for _ in range(2))
                others[site] = mean, variance
            means.append(mean)
            variances.append(variance)
        self._batch = [*means, *variances]
        if self._batch:  # the number of batches is summed on the device too
            self._batch.append(torch.ones_like(self._batch[0][0]))
        self._sums = [torch.zeros_like(tensor) for tensor in self._batch]

        def write(site: Site, x: Tensor) -> None:
            if model.training:
                with torch.no_grad():
                    mean, variance = others[site]
                    count = x.numel() // x.shape[1]
                    found, biased = batch_moments(x)
                    mean.copy_(found)
                    variance.copy_(biased * (count / max(count - 1, 1)))

        watch(model, others, write)

    def add(self) -> None:
        """Add the last batch's statistics."""
        if self._sums:
            torch._foreach_add_(self._sums, self._batch)

    def compute_and_reset(self) -> dict[str, Moments]:
        """The averages over all batches since the last call."""
        if not self._sums:
            return {}
        *sums, steps = map(to_float64, self._sums)
        averages = [total / steps.clamp(min=1) for total in sums]
        torch._foreach_zero_(self._sums)
        means, variances = averages[: len(self.sites)], averages[len(self.sites) :]
        names = [site.name for site in self.sites]
        return dict(zip(names, map(Moments, means, variances), strict=True))

    def tensors(self) -> list[Tensor]:
        """The tensors on the device that `add` changes."""
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": [total.to("cpu", copy=True) for total in self._sums]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from sums that `state_dict` gave; in place, as a captured step needs it."""
        for total, saved in zip(self._sums, state["sums"], strict=True):
            total.copy_(saved)


def shift_ratio(running: Tensor, evaluated: Tensor) -> float:
    """max(eval/running, running/eval) of the channel means (Li et al. 2019, section 4).

    At least 1; where a mean is not positive, 1 if both are equal and else NaN.
    """
    a, b = float(running.mean()), float(evaluated.mean())
    if not (a > 0 and b > 0):
        return float("nan") if a != b else 1.0
    return max(a / b, b / a)


def mean_shift(train_mean: Tensor, eval_mean: Tensor, train_variance: Tensor) -> Tensor:
    """Mean over the last dimension, channels, of |train mean − eval mean|/(train deviation).

    Dead channels, whose values never vary, are left out.
    """
    return ((train_mean - eval_mean).abs() / train_variance.sqrt()).nanmean(-1)


def ratio_error(ratio: float, variance: float, error: float, batches: int, average: float) -> float:
    """Standard error of a shift ratio, from the spread of the eval variance between batches.

    running and eval variance are averages over batches of one size, so with relative spread δ from
    batch to batch the ratio's relative error is δ·√(1/B + 1/B_run). A moving average of weight m
    counts as B_run = (2 − m)/m batches, a cumulative one as the number it averaged. How far the
    weights moved while it averaged is not included.

    Args:
        variance, error: channel mean of the eval variance and its standard error over `batches`.
        average: B_run.
    """
    if not (variance > 0 and average > 0):
        return float("nan")
    return ratio * error / variance * math.sqrt(1 + batches / average)
