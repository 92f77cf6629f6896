"""What is measured after an epoch, per site of the network. It changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from vshift.runs import RunFolder
from vshift.runs.files import Row
from vshift.runs.schema import LayerRow
from vshift.shift.comparison import SiteComparison, Stats, compare_passes, run_passes
from vshift.shift.decompose import Decomposer, Decomposition
from vshift.shift.modes import restoring_state
from vshift.shift.stats import (
    Moments,
    PooledMoments,
    averaged_batches,
    collecting_stats,
    pooled_moments,
    ratio_error,
    running_moments,
    shift_ratio,
)
from vshift.text import one_line
from vshift.train.context import TrainingContext, derive_seed, images_of
from vshift.train.scores import Scorer, Scores


@dataclass(frozen=True)
class Measured:
    """What is measured after an epoch.

    Attributes:
        rows: of layers.jsonl; none where the epoch is not measured.
        train_scores: of all augmented training images in eval mode, after the last epoch.
    """

    rows: list[LayerRow]
    train_scores: Scores | None = None


NOT_MEASURED = Measured([])


def measure_layers(context: TrainingContext, epoch: int, folder: RunFolder) -> Measured:
    """Measure every site, where the epoch is measured; resets the layer log.

    After the last epoch writes channels.safetensors too.
    """
    config, model, log = context.config, context.model, context.layer_log
    train = {} if log is None else log.compute_and_reset()
    last = epoch == config.epochs
    if log is None:
        return Measured([], evaluate_training(context, epoch).scores) if last else NOT_MEASURED
    if not (last or epoch % config.measure.every == 0):
        return NOT_MEASURED
    evaluated: dict[str, PooledMoments] = {}
    found = Explained({}, {})
    scores = None
    if last or config.measure.eval_epochs == "all" or epoch in config.measure.eval_epochs:
        in_eval = evaluate_training(context, epoch)
        scores, evaluated = in_eval.scores, in_eval.moments
        found = explained(context, epoch, in_eval.explaining)
    running, noisy = running_moments(model), context.noisy_layers
    if last:
        folder.write_channels(_channel_vectors(train, running, evaluated))
    averaged = partial(_averaged_batches, context, epoch)
    rows = [
        LayerRow(
            epoch=epoch,
            index=index,
            layer=site.name,
            kind=site.kind,
            channels=site.channels,
            noise_before=site.name in noisy if site.name in running and noisy is not None else None,
            train_variance=float(train[site.name].variance.mean()),
            running_variance=_mean_variance(running.get(site.name)),
            **_shift_columns(running.get(site.name), evaluated.get(site.name), averaged(site.name)),
            **_comparison_columns(found.comparisons.get(site.name), site.name in running),
            **_decomposition_columns(found.decompositions.get(site.name)),
        )
        for index, site in enumerate(log.sites)
    ]
    return Measured(rows, scores)


def _mean_variance(moments: Moments | None) -> float | None:
    return None if moments is None else float(moments.variance.mean())


def _shift_columns(running: Moments | None, evaluated: PooledMoments | None, average: float) -> Row:
    if evaluated is None:
        return {}
    variance = float(evaluated.average_variance.mean())
    if running is None:
        return {"eval_variance": variance}
    ratio = shift_ratio(running.variance, evaluated.average_variance)
    error = ratio_error(ratio, variance, evaluated.standard_error, evaluated.batches, average)
    return {"eval_variance": variance, "shift_ratio": ratio, "shift_ratio_se": error}


def _comparison_columns(found: SiteComparison | None, has_running: bool) -> Row:
    """What a site's passes differ in. Without running statistics its ratio is train over eval."""
    if found is None:
        return {}
    row: Row = {"cause": found.cause}
    if has_running:
        row |= {"mean_tid": found.mean_tid, "variance_tid": found.variance_tid}
    ratio = {"lag_ratio": found.lag} if has_running else {"shift_ratio": found.ratio}
    estimates = {"lag_free_ratio": found.lag_free, "mean_shift": found.mean_shift, **ratio}
    for name, estimate in estimates.items():
        row |= {name: estimate.value, f"{name}_se": estimate.error}
    return row


def _decomposition_columns(parts: Decomposition | None) -> Row:
    if parts is None:
        return {}
    row: Row = {
        "predicted_exact": parts.exact,
        "closed_form_ratio": parts.closed_form,
        "cos2": parts.cos2,
        "dcos2": parts.dcos2,
    }
    for name in ("total", "local", "inherited", "predicted"):
        estimate = getattr(parts, name)
        row |= {f"{name}_ratio": estimate.value, f"{name}_ratio_se": estimate.error}
    return row


def _averaged_batches(context: TrainingContext, epoch: int, layer: str) -> float:
    """The number of batches that a BN layer's running average counts as after `epoch` epochs."""
    if layer not in context.bn_layers:
        return 0.0
    frozen_after = getattr(context.config.norm, "freeze_after", None)
    steps = context.stream.steps * min(epoch, frozen_after or epoch)
    momentum = context.bn_layers[layer].momentum
    if momentum is None:
        return steps
    return min(steps, averaged_batches(momentum)) if momentum else 0.0


def _channel_vectors(
    train: dict[str, Moments], running: dict[str, Moments], evaluated: dict[str, PooledMoments]
) -> Row:
    """float32 vectors `<layer>.<train|running|eval>_<variance|mean>`."""
    in_eval = {k: Moments(p.average_mean, p.average_variance) for k, p in evaluated.items()}
    return {
        f"{name}.{kind}_{moment}": getattr(moments, moment).float().numpy()
        for kind, layers in (("train", train), ("running", running), ("eval", in_eval))
        for name, moments in layers.items()
        for moment in ("variance", "mean")
    }


@dataclass(frozen=True)
class InEval:
    """What a pass over augmented training batches in eval mode gives.

    Attributes:
        scores: of all of them, after the last epoch; None after another.
        moments: of every site's values over `measure.eval_batches`.
        explaining: the statistics of the first `measure.explain_batches`.
    """

    scores: Scores | None
    moments: dict[str, PooledMoments]
    explaining: Stats


def evaluate_training(context: TrainingContext, epoch: int) -> InEval:
    """Score and measure the network in eval mode in one pass over the batches that need it."""
    measure, last = context.config.measure, epoch == context.config.epochs
    batches = iter(context.augmented(epoch, None)())
    sites = [] if context.layer_log is None else context.sites
    scorer, done, after = Scorer(context), 0, dict[int, Stats]()
    with restoring_state(context.model):
        context.model.eval()
        torch.manual_seed(derive_seed(context.seed, epoch, "final noise"))
        with collecting_stats(context.model, sites) as found:
            for limit in sorted({measure.explain_batches, measure.eval_batches}):
                scorer.add(islice(batches, limit - done))
                done, after[limit] = limit, {name: stats.copy() for name, stats in found.items()}
        if last:
            scorer.add(batches)
    moments = {name: stats.pooled() for name, stats in after[measure.eval_batches].items()}
    return InEval(scorer.compute() if last else None, moments, after[measure.explain_batches])


def eval_moments(context: TrainingContext, epoch: int) -> dict[str, PooledMoments]:
    """Every site's values in eval mode, on augmented training batches."""
    batches = context.augmented(epoch, context.config.measure.eval_batches)
    with restoring_state(context.model), context.autocast():
        context.model.eval()
        return pooled_moments(context.model, images_of(batches), sites=context.sites)


@dataclass(frozen=True)
class Explained:
    """What the passes of `measure.explain_batches` find, by site."""

    comparisons: dict[str, SiteComparison]
    decompositions: dict[str, Decomposition]


def explained(context: TrainingContext, epoch: int, evaluated: Stats) -> Explained:
    """Every site in train against eval mode, and each BN layer's shift in local and inherited,
    with the prediction; nothing if turned off.

    Args:
        evaluated: the statistics of the same batches in eval mode.
    """
    limit = context.config.measure.explain_batches
    if not limit or not context.sites:
        return Explained({}, {})
    batches = images_of(context.augmented(epoch, limit))
    seed = derive_seed(context.seed, epoch, "explain noise")
    decomposer = _decomposer(context)
    beside = decomposer.observing() if decomposer else None
    with context.autocast():
        passes = run_passes(context.model, batches, context.sites, seed, beside, evaluated)
    return Explained(
        compare_passes(context.sites, passes), decomposer.compare(passes) if decomposer else {}
    )


def _decomposer(context: TrainingContext) -> Decomposer | None:
    """None without BN layers, and where the network cannot be traced."""
    if not context.bn_layers or context.noisy_layers is None:
        return None
    try:
        return Decomposer(context.model)
    except ValueError as error:  # a forward that has changed since it was traced first
        context.noisy_layers = None
        context.say(
            "from here on without predictions, and without which noise reaches a layer: "
            + one_line(str(error))
        )
        return None
