"""Train against eval mode at every site, with the moving average's lag split off.

BN's running variance differs from the variance in eval mode for two reasons: noise, which is the
variance shift, and lag, as the moving average remembers batches of earlier weights. Lag passes on:
a layer that normalises with old statistics changes the input of all layers after it. Three passes
over the same images, all with the present weights, tell the two apart:

    train    noise on, BN on batch statistics: what the running statistics would be without lag
    eval     the network in eval mode, with its running statistics
    settled  the same with every layer's statistics from the train pass: eval mode without lag

so that, for channel means of variances,

    eval/running = (settled/train) · (eval/running)/(settled/train) = shift · lag

The lag of the layer itself is train/running. Variances are UNBIASED batch variances, averaged over
batches, as a moving average is of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.shift.modes import modes, restoring_state, seeded
from vshift.shift.sites import Site
from vshift.shift.stats import (
    Batches,
    Estimate,
    InputStats,
    averaged_batches,
    jackknife,
    layer_running_moments,
    leave_one_out,
    mean_shift,
    site_stats,
)

Stats = dict[str, InputStats]
Cause = Literal["lag", "shift", "both"]
DECISIVE = 3.0  # standard errors


@dataclass(frozen=True)
class Passes:
    """The statistics of every site that ran, by its name, in each of the three passes."""

    train: Stats
    eval: Stats
    settled: Stats


@torch.no_grad()
def run_passes(
    model: nn.Module,
    batches: Batches,
    sites: Sequence[Site],
    seed: int = 0,
    beside: AbstractContextManager[object] | None = None,
    evaluated: Stats | None = None,
) -> Passes:
    """Run the three passes; the model does not change.

    Args:
        batches: called once per pass; gives the same inputs every time.
        seed: of the noise.
        beside: entered for the train pass, for other measurements of it.
        evaluated: the eval pass of the same batches, where it has been run already.

    Raises:
        ValueError: there are no batches; from PyTorch, for a batch of one value per channel.
    """
    with seeded(model, seed), modes(model, noise=True, norm="training"), beside or nullcontext():
        train = site_stats(model, batches(), sites)
    if evaluated is None:
        with _eval_mode(model):
            evaluated = site_stats(model, batches(), sites)
    if not train or not evaluated:
        raise ValueError("no batches, or no site that ran")
    with _eval_mode(model):
        is_settled = [_settle(site, train) for site in sites]  # all before the pass
        settled = site_stats(model, batches(), sites) if any(is_settled) else evaluated
    return Passes(train, evaluated, settled)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    with restoring_state(model):
        model.eval()
        yield


def _settle(site: Site, train: Mapping[str, InputStats]) -> bool:
    """Give a BN layer the statistics of the train pass; False where it keeps none."""
    layer, stats = site.module, train.get(site.name)
    if stats is None or not isinstance(layer, _BatchNorm):
        return False
    if layer.running_mean is None or layer.running_var is None:
        return False
    moments = stats.pooled()
    layer.running_mean.copy_(moments.average_mean)
    layer.running_var.copy_(moments.average_variance)
    return True


@dataclass(frozen=True)
class SiteComparison:
    """A site in train against eval mode. Ratios are of channel means of variances.

    Attributes:
        ratio: max(train/eval, eval/train), all with the present weights.
        lag: train/running, of the layer itself; NaN without running statistics.
        lag_free: max(settled/train, train/settled): the shift ratio without lag.
        cause: what makes up the larger part of eval/running: `lag`, `shift`, or `both` where the
            difference is within three standard errors; None where neither is three standard errors
            from 1. Without running statistics, of eval/train: `shift` or None, as the site has no
            lag of its own.
        mean_shift: |train mean − eval mean| in units of the train standard deviation, mean over
            channels.
        mean_tid, variance_tid: the train-inference discrepancy (Wang et al. 2022, 2210.05153),
            E‖μ_B − μ‖₂/‖σ‖₂ and E‖σ_B − σ‖₂/‖σ‖₂ over train batches B with the running
            statistics μ and σ²; NaN without those.
    """

    ratio: Estimate
    lag: Estimate
    lag_free: Estimate
    cause: Cause | None
    mean_shift: Estimate
    mean_tid: float
    variance_tid: float


_UNKNOWN = Estimate(math.nan, math.nan)


def compare_passes(sites: Sequence[Site], passes: Passes) -> dict[str, SiteComparison]:
    """The comparison of every site that ran, by its name. Errors are jackknife standard errors."""
    return {
        site.name: _compare(
            site, *(kind[site.name] for kind in (passes.train, passes.eval, passes.settled))
        )
        for site in sites
        if site.name in passes.train and site.name in passes.eval
    }


def _compare(
    site: Site, train: InputStats, evaluated: InputStats, settled: InputStats
) -> SiteComparison:
    train_variance, eval_variance = _averages(train.unbiased()), _averages(evaluated.unbiased())
    level = train_variance.mean(1)
    train_log, eval_log = level.log(), eval_variance.mean(1).log()
    shift = _averages(settled.unbiased()).mean(1).log() - train_log
    running_log, run_error, lag = train_log, 0.0, _UNKNOWN
    mean_tid = variance_tid = math.nan
    moments = layer_running_moments(site.module) if isinstance(site.module, _BatchNorm) else None
    if moments is not None and isinstance(site.module, _BatchNorm):
        running_log = moments.variance.mean().log()
        # The running average is of few batches itself, which vary as those of the train pass do.
        of_batches = jackknife(level)
        batches = len(level) - 1
        # Constant inputs have no ratio.
        run_error = of_batches.error / of_batches.value if of_batches.value else math.nan
        run_error *= math.sqrt(batches / _batches_averaged(site.module))
        lag = jackknife((train_log - running_log).exp())
        lag = Estimate(lag.value, math.hypot(lag.error, lag.value * run_error))
        deviation, scale = moments.variance.sqrt(), moments.variance.sum().sqrt()
        mean_tid = float(((train.means() - moments.mean).norm(dim=1) / scale).mean())
        variance_tid = float(((train.unbiased().sqrt() - deviation).norm(dim=1) / scale).mean())
    cause = _cause(shift, eval_log - running_log - shift, run_error)
    means = _averages(train.means()), _averages(evaluated.means())
    return SiteComparison(
        ratio=jackknife((eval_log - train_log).abs().exp()),
        lag=lag,
        lag_free=jackknife(shift.abs().exp()),
        cause=cause if moments is not None or cause == "shift" else None,
        mean_shift=jackknife(mean_shift(*means, train_variance)),
        mean_tid=mean_tid,
        variance_tid=variance_tid,
    )


def _averages(rows: Tensor) -> Tensor:
    """Averages over batches of [B, C]: of all, then without each one, [1 + B, C]."""
    return leave_one_out(rows) / leave_one_out(torch.ones(len(rows), 1, dtype=torch.float64))


def _batches_averaged(layer: _BatchNorm) -> float:
    """The number of batches that the running average counts as."""
    seen = float(layer.num_batches_tracked or 1)
    return seen if layer.momentum is None else min(seen, averaged_batches(layer.momentum))


def _cause(shift: Tensor, lag: Tensor, lag_error: float) -> Cause | None:
    """Which of two logarithms of ratios is larger, if their standard errors can tell.

    Args:
        shift, lag: of all batches, then without each one.
        lag_error: of the lag, besides.
    """

    def is_clear(values: Tensor, more: float = 0.0) -> bool:
        found = jackknife(values)
        return abs(found.value) > DECISIVE * math.hypot(found.error, more)

    if not (is_clear(shift) or is_clear(lag, lag_error)):
        return None
    difference = lag.abs() - shift.abs()
    if not is_clear(difference, lag_error):
        return "both"
    return "lag" if float(difference[0]) > 0 else "shift"
