"""What is measured after the last epoch: recalibrations, averages, modes, and the summary."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import torch

from vshift.config.measure import Recalibration
from vshift.config.recalibration import Estimating
from vshift.runs import RunFolder
from vshift.runs.files import Row
from vshift.runs.schema import EpochRow
from vshift.runs.summary import error_of, summarize_layers, summarize_ratios, with_errors
from vshift.shift.mode_matrix import mode_costs, mode_matrix
from vshift.shift.modes import (
    BNState,
    batch_statistics,
    is_off,
    load_bn_state,
    noise_modules,
    restoring_state,
)
from vshift.shift.recalibration import NotFiniteError, estimate_statistics
from vshift.shift.stats import running_moments, shift_ratio
from vshift.train.context import Batches, TrainingContext, derive_seed, images_of
from vshift.train.measure import Measured, eval_moments
from vshift.train.monte_carlo import monte_carlo_rows
from vshift.train.scores import (
    CALIBRATION,
    NO_SCORES,
    code_scores,
    evaluate,
    test_scores,
    train_mode_scores,
)


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
        "noise_modules": sum(not is_off(m) for m in noise_modules(context.model).values()),
        "parameters": sum(p.numel() for p in context.model.parameters()),
        **measured.train_scores.columns("train_{}_eval_mode"),
        **train_mode_scores(context),
    }
    context.enter_phase("recalibrate")
    rows, states = recalibrations(context, config.recalibration)
    tested = {key: value for key, value in final.items() if key.startswith("test_")}
    folder.write_recalibration([{"method": "none", **tested}, *rows], states)
    summary |= _recalibration_summary(rows, has_rmse="test_rmse" in final)
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


def _recalibration_summary(rows: list[Row], has_rmse: bool) -> Row:
    """Every method's scores by `<score>_<method>`, and the first one's as `…_recalibrated`."""
    keys = ("test_accuracy", "test_r2", *(f"test_{name}" for name in CALIBRATION))
    summary = {f"{key}_{row['method']}": row[key] for row in rows for key in keys if key in row}
    if rows:
        first = rows[0]
        summary["recalibration"] = first["method"]
        summary["test_error_recalibrated"] = error_of(first["test_accuracy"])
        summary["test_loss_recalibrated"] = first["test_loss"]
        if has_rmse:
            summary["test_rmse_recalibrated"] = first.get("test_rmse")
    return summary


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
                    tested = {**NO_SCORES, "problem": str(error)}
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
            images_of(batches),
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
                scores = with_errors(NO_SCORES)
            for row in recalibrations(context, first)[0]:
                scores["test_error_recalibrated"] = error_of(row["test_accuracy"])
        summary |= {f"{key}_average_{word}": value for key, value in scores.items()}
    return summary


def mode_rows(context: TrainingContext, states: dict[str, BNState]) -> list[Row]:
    """The mode matrix on test images and on augmented training images, always with `precise`."""
    epoch = context.config.epochs
    if "precise" not in states:
        with suppress(NotFiniteError):
            how = context.config.recalibration
            found = _estimated(context, how, "precise") if context.bn_layers else {}
            states = {**states, "precise": found}
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


def _scored(context: TrainingContext, batches: Batches) -> Row:
    scores = evaluate(context, batches())
    return {**scores.columns(), "count": scores.metrics.count}


def mode_summary(rows: list[Row]) -> Row:
    """The test part's costs in points: of the noise, and what each method recovers."""
    costs = mode_costs([row for row in rows if row["data"] == "test"])
    return {f"test_{key.replace('.', '_')}": value for key, value in costs.items()}
