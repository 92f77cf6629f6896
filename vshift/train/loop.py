"""Training one config with one seed: the loop, top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vshift.config.networks import FullyConnected
from vshift.config.schema import Config
from vshift.data import ImageSet, train_stream
from vshift.errors import ConfigError
from vshift.networks import build
from vshift.runs import RunFolder
from vshift.shift.stats import running_moments
from vshift.shift.training_log import TrainingLog
from vshift.text import pluralize
from vshift.train.checkpointer import Checkpointer
from vshift.train.choose_step import STEPS, make_step, works_on
from vshift.train.evaluate import (
    TrainingContext,
    code_scores,
    eval_moments,
    explanations,
    measures_eval_at,
    measures_layers_at,
    mode_rows,
    mode_summary,
    monte_carlo_scores,
    recalibrations,
    test_scores,
    train_scores,
)
from vshift.train.layers import EpochLayerStats, error_of, mean_ratio, summary_of
from vshift.train.objective import make_objective
from vshift.train.progress import Reporter
from vshift.train.schedule import learning_rates
from vshift.train.seeding import derive_seed
from vshift.train.signals import NO_STOP, StopSignal
from vshift.train.step import MetricAccumulator, make_optimizer

Row = dict[str, Any]
MOST_STEPS = 10**8  # of a run; each has its learning rate in a list


def train(
    config: Config,
    seed: int,
    images: ImageSet,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopSignal = NO_STOP,
) -> str:
    """Train until the last epoch and write everything into the folder as it comes.

    Goes on from the folder's checkpoint where there is one. All randomness derives from
    (seed, epoch, purpose), so a run that went on equals one that never stopped.

    Args:
        stop: asked after each step; the run then writes a checkpoint and raises `Stopped`.

    Returns:
        `done` or `diverged`.
    """
    context = make_context(config, seed, images)
    model, stream = context.model, context.stream
    optimizer = make_optimizer(model, config.optimizer)
    rates = learning_rates(
        config.schedule, config.optimizer.learning_rate, config.epochs, stream.steps
    )
    tally = MetricAccumulator(images.train.images.device)
    log = TrainingLog(model) if config.measure.every else None
    checkpointer = Checkpointer(folder, context, optimizer, tally, log, stop, reporter.say)
    context = replace(context, check_stop=checkpointer.check_stop)
    finished = checkpointer.restore()
    step = make_step(
        train_step_kind(folder, context, began_before=checkpointer.has_begun),
        stream,
        model,
        optimizer,
        config.hardware.precision,
        tally,
        log,
        make_objective(config),
        reporter.say,
    )
    folder.update_run(step=step.name)
    reporter.start(f"{config.name} seed {seed}", finished, config.epochs, stream.steps)

    for epoch in range(finished + 1, config.epochs + 1):
        began = time.perf_counter()
        model.train()
        torch.manual_seed(derive_seed(seed, epoch, "noise"))
        done, seconds = checkpointer.begin(epoch)
        began -= seconds
        reporter.step(done)
        epoch_rates = rates[(epoch - 1) * stream.steps : epoch * stream.steps]
        for steps in step.epoch(stream, derive_seed(seed, epoch, "data"), epoch_rates, skip=done):
            reporter.step(steps)
            checkpointer.step(steps)
        trained = tally.compute_and_reset()
        training_seconds = time.perf_counter() - began

        row: Row = {
            "epoch": epoch,
            "step": epoch * stream.steps,
            "learning_rate": epoch_rates[-1],
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            **test_scores(context),
        }
        diverged = not math.isfinite(trained.loss)
        layers = [] if log is None or diverged else measure_layers(context, log, epoch, folder)
        row["seconds"] = time.perf_counter() - began
        row["images_per_second"] = trained.count / training_seconds
        folder.append_metrics(row)
        folder.append_layers(layers)
        if diverged:
            reporter.epoch(row, None)
            return "diverged"
        if epoch == config.epochs:
            evaluate_final_model(context, row, layers, folder)
        checkpointer.finished(epoch)
        reporter.epoch(row, mean_ratio(layers))
    return "done"


def train_step_kind(folder: RunFolder, context: TrainingContext, began_before: bool) -> str:
    """The step that a run goes on with: the one that it began with, if there is such a one on this
    device."""
    began_with = folder.run.get("step")
    device = context.images.train.images.device.type
    known = began_before and began_with in STEPS and works_on(str(began_with), device)
    return str(began_with) if known else context.config.hardware.step


def make_context(config: Config, seed: int, images: ImageSet) -> TrainingContext:
    """The network with the seed's initial weights on the images' device, and its batches."""
    augment = config.data.augment
    stream = train_stream(images, config.data.batch_size, augment.crop, augment.flip)
    model = build_model(config, images, seed)
    model.to(images.train.images.device).to(memory_format=torch.channels_last)
    return TrainingContext(config, seed, model, images, stream)


def measure_layers(
    context: TrainingContext, log: TrainingLog, epoch: int, folder: RunFolder
) -> list[Row]:
    """The epoch's rows of layers.jsonl; in the last epoch also the channels' vectors."""
    config, model = context.config, context.model
    steps = context.stream.steps
    train_stats = log.compute_and_reset()
    if not measures_layers_at(config, epoch):
        return []
    meets = measures_eval_at(config, epoch)
    found = EpochLayerStats(
        train=train_stats,
        running=running_moments(model),
        eval_stats=eval_moments(context, epoch) if meets else {},
        explained=explanations(context, epoch) if meets else {},
        average=batches_remembered(config.norm, epoch * steps),
    )
    if epoch == config.epochs:
        folder.write_channels(found.vectors())
    return found.rows(epoch, context.noisy)


def batches_remembered(norm: Any, steps: int) -> float:
    """How many batches BN's average is worth after so many steps: (2 − m)/m of a moving one."""
    momentum = getattr(norm, "momentum", 0.0)
    if momentum is None:
        return steps
    return min(steps, (2 - momentum) / momentum) if momentum else 0.0


def evaluate_final_model(
    context: TrainingContext, row: Row, layers: list[Row], folder: RunFolder
) -> None:
    """After the last epoch: repair, split up what was lost, and write the summary."""
    config, epoch = context.config, context.config.epochs
    summary = {**summary_of(context.model, row, layers), **train_scores(context, epoch)}
    rows, states = recalibrations(context, config.recalibration, epoch)
    tested = {key: value for key, value in row.items() if key.startswith("test_")}
    folder.write_recalibration([{"method": "none", **tested}, *rows], states)
    summary |= {f"test_accuracy_{r['method']}": r["test_accuracy"] for r in rows}
    if rows:
        summary["recalibration"] = rows[0]["method"]
        summary["test_error_recalibrated"] = error_of(rows[0]["test_accuracy"])
        summary["test_loss_recalibrated"] = rows[0]["test_loss"]
    if config.network.name == "autoencoder":
        summary |= code_scores(context)
    if config.measure.modes:
        modes = mode_rows(context, states, epoch)
        folder.write_modes(modes)
        summary |= mode_summary(modes)
    if config.measure.monte_carlo:
        summary |= monte_carlo_scores(context, config.measure.monte_carlo, epoch)
    folder.write_summary(summary)


def build_model(config: Config, images: ImageSet, seed: int) -> nn.Module:
    """The config's network for these images, with the seed's initial weights."""
    model = build(
        config,
        classes=len(images.classes),
        channels=images.channels,
        size=images.size,
        seed=derive_seed(seed, 0, "weights"),
    )
    steps = config.epochs * -(-len(images.train) // config.data.batch_size)
    if steps > MOST_STEPS:
        raise ConfigError(
            f"epochs: {pluralize(config.epochs, 'epoch')} are {steps:,} steps; at most "
            f"{MOST_STEPS:,}"
        )
    if len(images.train) % config.data.batch_size == 1 and isinstance(
        config.network, FullyConnected
    ):
        raise ConfigError(
            f"data.batch_size: the last batch of {len(images.train)} images would hold a single "
            f"one, and BN in an {config.network.name} cannot take the variance of one value; try "
            f"{config.data.batch_size + 1}"
        )
    return model
