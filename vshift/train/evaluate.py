"""Measurements of a run's network, after an epoch and after the run. They change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config.measure import Recalibration
from vshift.config.recalibration import Estimating
from vshift.runs import RunFolder
from vshift.runs.schema import (
    EpochRow,
    LayerRow,
    error_of,
    summarize_layers,
    summarize_ratios,
    with_errors,
)
from vshift.shift.calibration import Calibration, CalibrationSums
from vshift.shift.comparison import SiteComparison, Stats, compare_passes, run_passes
from vshift.shift.decompose import Decomposer, Decomposition
from vshift.shift.mode_matrix import (
    MonteCarlo,
    MonteCarloNumbers,
    mode_costs,
    mode_matrix,
    monte_carlo,
    monte_carlo_bn,
)
from vshift.shift.modes import BNState, batch_statistics, load_bn_state, restoring_state
from vshift.shift.recalibration import NotFiniteError, estimate_statistics
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
from vshift.train.context import Batches, TrainingContext, derive_seed
from vshift.train.objective import MetricAccumulator, Metrics

Row = dict[str, Any]
CALIBRATION = tuple(field.name for field in fields(Calibration))
_NO_SCORES = dict.fromkeys(f"test_{name}" for name in ("loss", "accuracy", *CALIBRATION))


@dataclass(frozen=True)
class Scores:
    """Metrics, and how well calibrated the answers are (None where nothing is classified)."""

    metrics: Metrics
    calibration: Calibration | None

    def columns(self, pattern: str = "{}") -> Row:
        """The scores by column: `test_loss`, …, `test_ece` for the pattern `test_{}`."""
        values = dict.fromkeys(CALIBRATION) | (asdict(self.calibration) if self.calibration else {})
        calibration = {pattern.format(name): value for name, value in values.items()}
        return self.metrics.columns(pattern) | calibration


def _images(batches: Batches) -> Callable[[], Iterator[Tensor]]:
    return lambda: (images for images, _ in batches())


class Scorer:
    """Mean loss and scores over batches, in the mode that the model is in when they are added."""

    def __init__(self, context: TrainingContext) -> None:
        self.context, self.metrics = context, context.make_metrics()
        self.calibration = CalibrationSums(context.device)

    @torch.no_grad()
    def add(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        context, classes = self.context, len(self.context.images.classes)
        for images, labels in batches:
            with context.autocast():
                output = context.model(images).float()
            self.metrics.add(*context.objective(output, images, labels), len(labels))
            if labels.dtype == torch.int64 and output.shape == (len(labels), classes):
                self.calibration.add(output.double().log_softmax(1), labels)

    def compute(self) -> Scores:
        found = self.metrics.compute_and_reset()
        return Scores(found, None if found.accuracy is None else self.calibration.compute())


def evaluate(context: TrainingContext, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Mean loss and scores over batches, in the model's present mode."""
    scorer = Scorer(context)
    scorer.add(batches)
    return scorer.compute()


def test_scores(context: TrainingContext) -> Row:
    """The test part's scores, and the validation part's where there is one, in eval mode."""
    parts = {"test": context.images.test, "validation": context.images.validation}
    row: Row = {}
    for name, part in parts.items():
        if part is not None:
            with restoring_state(context.model):
                context.model.eval()
                scores = evaluate(context, context.to_test(part))
            row |= scores.columns(f"{name}_{{}}")
    return row


def train_mode_scores(context: TrainingContext) -> Row:
    """Scores on all augmented training images in train mode; buffers stay as they are."""
    epoch = context.config.epochs
    with restoring_state(context.model):
        context.model.train()
        torch.manual_seed(derive_seed(context.seed, epoch, "final noise"))
        scores = evaluate(context, context.augmented(epoch, None)())
    return scores.columns("train_{}_train_mode")


@torch.no_grad()
def code_scores(context: TrainingContext) -> Row:
    """How active an autoencoder's code, its last hidden layer, is on the test images."""
    coder = nn.Sequential(*list(context.model.children())[:-1])
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    with restoring_state(context.model), context.autocast():
        context.model.eval()
        for images, _ in context.to_test(context.images.test):
            code = coder(images).double().cpu()
            sums += torch.stack([code.sum(), (code > 0.5).double().sum()])
            count += code.numel()
    mean, active = (sums / count).tolist()
    return {"code_mean_activity": mean, "code_share_above_half": active}


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
) -> dict[str, Any]:
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
        return pooled_moments(context.model, _images(batches), sites=context.sites)


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
    batches = _images(context.augmented(epoch, limit))
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


def recalibrations(
    context: TrainingContext, how: Recalibration
) -> tuple[list[Row], dict[str, BNState]]:
    """Re-estimate BN statistics by every method asked for, and test with each.

    Returns:
        A row per method, and the new statistics by method (none for `batch` and `mix`, which are
        ways to test). Where a method finds no finite statistics, its row has no scores and the
        reason as `problem`.
    """
    if not context.bn_layers:
        return [], {}
    epoch = context.config.epochs
    rows: list[Row] = []
    states: dict[str, BNState] = {}
    for method in how.methods:
        context.reporter.phase(f"recalibrating: {method}")
        with restoring_state(context.model):
            if method == "batch" or method == "mix":
                weight = 1.0 if method == "batch" else how.batch_weight
                with batch_statistics(context.model, weight):
                    scores = evaluate(context, context.plain(context.images.test)())
                tested: Row = {**scores.columns("test_{}"), "own": weight}
            else:
                try:
                    states[method] = _estimated(context, how, method)
                    load_bn_state(context.model, states[method])
                    tested = test_scores(context) | _mean_ratios(context, epoch)
                except NotFiniteError as error:
                    tested = {**_NO_SCORES, "problem": str(error)}
        # `own` is the column's name in run folders, from before the key was called batch_weight.
        options = how.model_dump(exclude={"methods", "batch_weight"}) | {"own": how.batch_weight}
        rows.append({"method": method, **options, **tested})
    return rows, states


def _estimated(context: TrainingContext, how: Recalibration, method: Estimating) -> BNState:
    """New BN statistics by a method; NotFiniteError where it finds none."""
    epoch, part = context.config.epochs, context.images.train
    batches = (
        context.augmented(epoch, how.batches) if how.augment else context.plain(part, how.batches)
    )
    torch.manual_seed(derive_seed(context.seed, epoch, "recalibration noise"))
    with context.autocast():
        return estimate_statistics(
            context.model,
            _images(batches),
            method,
            moments=how.moments,
            estimator=how.estimator,
            at_once=method == "layerwise",
        )


def _mean_ratios(context: TrainingContext, epoch: int) -> Row:
    """Shift ratios with the model's present running statistics."""
    evaluated, running = eval_moments(context, epoch), running_moments(context.model)
    ratios = {
        name: shift_ratio(running[name].variance, moments.average_variance)
        for name, moments in evaluated.items()
        if name in running
    }
    summary = summarize_ratios(ratios)
    return {key: summary[key] for key in ("shift_ratio_mean", "shift_ratio_max")}


def _scored(context: TrainingContext, batches: Batches) -> Row:
    scores = evaluate(context, batches())
    return {**scores.columns(), "count": scores.metrics.count}


# How the words of `average.buffers` that nothing holds yet are estimated.
_ESTIMATED: dict[str, Estimating] = {"own": "dropout_on", "precise": "precise"}


def average_summary(context: TrainingContext) -> Row:
    """Scores and shift ratios of the averaged network, with each of its `buffers`.

    Keys end in `_average_<word>`; `…_recalibrated…` is after the first of `recalibration.methods`.
    """
    average, how = context.config.average, context.config.recalibration
    if average is None or context.average is None:
        return {}
    first = how.model_copy(update={"methods": how.methods[:1]})
    summary: Row = {}
    for word in average.words:
        model = context.model
        with restoring_state(model), context.average.applied(buffers=word == "averaged"):
            try:
                if word in _ESTIMATED and context.bn_layers:
                    load_bn_state(model, _estimated(context, how, _ESTIMATED[word]))
                scores = with_errors(test_scores(context))
                scores |= _mean_ratios(context, context.config.epochs)
            except NotFiniteError:
                scores = with_errors(_NO_SCORES)
            for row in recalibrations(context, first)[0]:
                scores["test_error_recalibrated"] = error_of(row["test_accuracy"])
        summary |= {f"{key}_average_{word}": value for key, value in scores.items()}
    return summary


def mode_rows(context: TrainingContext, states: dict[str, BNState]) -> list[Row]:
    """The mode matrix on test images and on augmented training images."""
    epoch = context.config.epochs
    parts = {
        "train": context.augmented(epoch, context.config.measure.eval_batches),
        "test": context.plain(context.images.test),
    }
    seed = derive_seed(context.seed, epoch, "mode noise")
    rows = []
    for name, batches in parts.items():
        score = partial(_scored, context, batches)
        matrix = mode_matrix(context.model, score, states, seed=seed)
        rows += [{"data": name, **row} for row in matrix]
    return rows


def mode_summary(rows: list[Row]) -> Row:
    """The test part's costs in points: of the noise, of stale statistics, and what came back."""
    costs = mode_costs([row for row in rows if row["data"] == "test"])
    return {f"test_{key.replace('.', '_')}": value for key, value in costs.items()}


def monte_carlo_rows(context: TrainingContext) -> list[Row]:
    """The mean of many predictions of the test images, by each method that `measure` asks for.

    Returns:
        Rows of `method` (`monte_carlo`, `monte_carlo_bn`), the scores as `test_…`, and what is
        known of the passes as `<method>_…`.
    """
    measure, test = context.config.measure, context.plain(context.images.test)
    found: dict[str, MonteCarlo | MonteCarloNumbers] = {}
    # A batch is predicted many times: a signal must not wait for all of them.
    hook = context.model.register_forward_pre_hook(lambda *_: context.check_stop())
    try:
        with context.autocast():
            if passes := measure.monte_carlo:
                seed = derive_seed(context.seed, context.config.epochs, "monte carlo")
                found["monte_carlo"] = monte_carlo(context.model, test, passes, seed)
            if passes := measure.monte_carlo_bn:
                training = partial(_single_batches, context, passes)
                found["monte_carlo_bn"] = monte_carlo_bn(context.model, test, training)
    finally:
        hook.remove()
    return [_monte_carlo_row(context, method, scores) for method, scores in found.items()]


def _single_batches(context: TrainingContext, number: int) -> Iterator[Tensor]:
    """Training batches as BN met them: drawn as in an epoch, all of the full size.

    With ghost BN the first group of each. Where an epoch has too few, another one goes on.
    """
    size = min(context.stream.batch_size, len(context.images.train))
    group = getattr(context.config.norm, "ghost", None)
    seeds = (
        derive_seed(context.seed, context.config.epochs, f"monte carlo bn {epoch}")
        for epoch in count()
    )
    batches = (images for seed in seeds for images, _ in context.stream.epoch(seed))
    return islice((images[:group] for images in batches if len(images) == size), number)


def _monte_carlo_row(
    context: TrainingContext, method: str, found: MonteCarlo | MonteCarloNumbers
) -> Row:
    scores, passes = (
        _number_scores(context, found)
        if isinstance(found, MonteCarloNumbers)
        else _class_scores(found)
    )
    return {
        "method": method,
        **{f"test_{key}": value for key, value in scores.items()},
        **{f"{method}_{key}": value for key, value in (scores | passes).items()},
    }


def _number_scores(context: TrainingContext, found: MonteCarloNumbers) -> tuple[Row, Row]:
    """Scores of the mean prediction, and what is known of the passes, in the targets' own units."""
    std = context.images.target_std
    assert std is not None
    metrics = MetricAccumulator(context.device, std)
    mean, targets = (tensor.float().to(context.device) for tensor in (found.mean, found.targets))
    metrics.add(*context.objective(mean, mean, targets), len(targets))
    rmse = (found.pass_errors * std.cpu().square()).mean(1).sqrt()
    passes = {
        "passes": len(rmse),
        "pass_rmse": float(rmse.mean()),
        "rmse_sd": float(rmse.std(correction=1)),
        "spread": float((found.spread * std.cpu()).mean()),
    }
    return metrics.compute_and_reset().columns(), passes


def _class_scores(found: MonteCarlo) -> tuple[Row, Row]:
    scores = {
        "accuracy": found.accuracy,
        "loss": found.calibration.nll,
        **asdict(found.calibration),
    }
    passes = {
        "passes": found.passes,
        "pass_accuracy": found.pass_accuracy,
        "accuracy_sd": found.accuracy_sd,
        "spread": float(found.spread.mean()),
    }
    return scores, passes


def evaluate_final_model(
    context: TrainingContext, row: EpochRow, measured: Measured, folder: RunFolder
) -> None:
    """After the last epoch: recalibrate, take the mode matrix, and write the summary."""
    config = context.config
    assert measured.train_scores is not None
    context.enter_phase("test")
    epoch_row = row.to_dict()
    final = {k: v for k, v in epoch_row.items() if k.startswith(("test_", "validation_"))}
    summary: Row = {
        "epoch": row.epoch,
        **with_errors(final),
        **{k: v for k, v in epoch_row.items() if k.startswith("train_")},
        **summarize_layers(measured.rows),
        "bn_layers": len(context.bn_layers),  # also where none was measured
        "parameters": sum(p.numel() for p in context.model.parameters()),
        **measured.train_scores.columns("train_{}_eval_mode"),
        **train_mode_scores(context),
    }
    context.enter_phase("recalibrate")
    rows, states = recalibrations(context, config.recalibration)
    tested = {key: value for key, value in final.items() if key.startswith("test_")}
    folder.write_recalibration([{"method": "none", **tested}, *rows], states)
    summary |= {
        f"{key}_{row['method']}": row[key]
        for row in rows
        for key in ("test_accuracy", "test_r2", *(f"test_{name}" for name in CALIBRATION))
        if key in row
    }
    if rows:
        summary["recalibration"] = rows[0]["method"]
        summary["test_error_recalibrated"] = error_of(rows[0]["test_accuracy"])
        summary["test_loss_recalibrated"] = rows[0]["test_loss"]
        if "test_rmse" in final:
            summary["test_rmse_recalibrated"] = rows[0].get("test_rmse")
    context.enter_phase("measure")
    summary |= average_summary(context)
    if config.network.name == "autoencoder":
        summary |= code_scores(context)
    if config.measure.modes:
        modes = mode_rows(context, states)
        folder.write_modes(modes)
        summary |= mode_summary(modes)
    for found in monte_carlo_rows(context):
        summary |= {k: v for k, v in found.items() if k.startswith(f"{found['method']}_")}
    context.enter_phase("write")
    folder.write_summary(summary)
