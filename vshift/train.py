"""Training one config with one seed: the loop, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.config.schema import Config
from vshift.data import ImageSet, Part, Stream, plain_stream, train_stream
from vshift.device import autocast
from vshift.errors import ConfigError
from vshift.layers import layer_rows, mean_ratio, summary_of, vectors
from vshift.networks import build
from vshift.progress import Reporter
from vshift.runs import RunFolder
from vshift.schedule import learning_rates
from vshift.seeding import derive
from vshift.shift.graph import noise_in_front
from vshift.shift.probe import Moments, TrainingLog, input_moments, preserved, running_moments
from vshift.step import EagerStep, Score, Tally, make_optimizer

Row = dict[str, Any]


def train(
    config: Config, seed: int, images: ImageSet, folder: RunFolder, reporter: Reporter
) -> str:
    """Train until the last epoch and write everything into the folder as it comes.

    Goes on from the folder's checkpoint where there is one. All randomness derives from
    (seed, epoch, purpose), so a run that went on equals one that never stopped.

    Returns:
        `done` or `diverged`.
    """
    device = images.train.images.device
    stream = train_stream(images, config.data.batch_size, *_augment(config))
    model = build_for(config, images, seed)
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.optimizer)
    rates = learning_rates(
        config.schedule, config.optimizer.learning_rate, config.epochs, stream.steps
    )
    tally = Tally(device)
    log = TrainingLog(model) if config.measure.every else None
    step = EagerStep(model, optimizer, config.hardware.precision, tally, log)
    finished = restore(folder, model, optimizer)
    noisy = {name for name, noise in noise_in_front(model).items() if noise}
    reporter.start(f"{config.name} seed {seed}", finished, config.epochs, stream.steps)

    for epoch in range(finished + 1, config.epochs + 1):
        began = time.perf_counter()
        model.train()
        torch.manual_seed(derive(seed, epoch, "noise"))
        epoch_rates = rates[(epoch - 1) * stream.steps : epoch * stream.steps]
        batches = stream.epoch(derive(seed, epoch, "data"))
        for (pixels, labels), rate in zip(batches, epoch_rates, strict=True):
            step(pixels, labels, rate)
            reporter.step()
        trained = tally.take()
        training_seconds = time.perf_counter() - began

        diverged = not math.isfinite(trained.loss)
        row: Row = {
            "epoch": epoch,
            "step": epoch * stream.steps,
            "learning_rate": epoch_rates[-1],
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            **scores(config, model, images),
        }
        layers: list[Row] = []
        if log is not None and not diverged:
            seen = log.take()
            if measured_at(config, epoch):
                met = eval_moments(config, model, stream, seed, epoch)
                layers = layer_rows(epoch, seen, running_moments(model), met, noisy)
            if epoch == config.epochs:
                folder.write_channels(vectors(seen, running_moments(model), met))
        row["seconds"] = time.perf_counter() - began
        row["images_per_second"] = trained.count / training_seconds
        folder.append_metrics(row)
        folder.append_layers(layers)
        reporter.epoch(row, mean_ratio(layers))
        if diverged:
            return "diverged"
        if epoch == config.epochs:
            final = final_scores(config, model, stream, seed, epoch)
            folder.write_summary({**summary_of(model, row, layers), **final})
        folder.save_checkpoint(checkpoint(epoch, model, optimizer))
    return "done"


def build_for(config: Config, images: ImageSet, seed: int) -> nn.Module:
    """The config's network for these images, with the seed's initial weights."""
    model = build(
        config,
        classes=len(images.classes),
        channels=images.channels,
        size=images.size,
        seed=derive(seed, 0, "weights"),
    )
    if len(images.train) % config.data.batch_size == 1 and config.network.name == "mlp":
        raise ConfigError(
            f"data.batch_size: the last batch of {len(images.train)} images would hold a single "
            f"one, and BN in an mlp cannot take the variance of one value; try "
            f"{config.data.batch_size + 1}"
        )
    return model


def _augment(config: Config) -> tuple[int, bool]:
    return config.data.augment.crop, config.data.augment.flip


def measured_at(config: Config, epoch: int) -> bool:
    """Whether the layers' variances are written at this epoch: each n-th, and the last."""
    every = config.measure.every
    return bool(every) and (epoch % every == 0 or epoch == config.epochs)


def eval_moments(
    config: Config, model: nn.Module, stream: Stream, seed: int, epoch: int
) -> dict[str, Moments]:
    """What every BN layer meets in eval mode on augmented training batches; {} if not now."""
    named = config.measure.eval_epochs
    if not (epoch == config.epochs or named == "all" or epoch in named):
        return {}
    batches = islice(stream.epoch(derive(seed, epoch, "measure")), config.measure.eval_batches)
    with preserved(model), autocast(stream.part.images.device, config.hardware.precision):
        model.eval()
        return input_moments(model, (pixels for pixels, _ in batches))


def scores(config: Config, model: nn.Module, images: ImageSet) -> Row:
    """Test loss and accuracy, and the validation part's where there is one, in eval mode."""
    parts = {"test": images.test, "validation": images.validation}
    row: Row = {}
    for name, part in parts.items():
        if part is not None:
            score = _score_in_eval_mode(config, model, images, part)
            row[f"{name}_loss"] = score.loss
            row[f"{name}_accuracy"] = score.accuracy
    return row


def _score_in_eval_mode(config: Config, model: nn.Module, images: ImageSet, part: Part) -> Score:
    with preserved(model):
        model.eval()
        return score(model, plain_stream(images, part).plain(), config.hardware.precision)


def final_scores(config: Config, model: nn.Module, stream: Stream, seed: int, epoch: int) -> Row:
    """Accuracy of the final weights on augmented training data, in eval and in train mode.

    In train mode noise is on and BN uses each batch's statistics; buffers stay as they are.
    """
    row: Row = {}
    for mode in ("eval", "train"):
        with preserved(model):
            model.train(mode == "train")
            torch.manual_seed(derive(seed, epoch, "final noise"))
            batches = stream.epoch(derive(seed, epoch, "final"))
            result = score(model, batches, config.hardware.precision)
        row[f"train_accuracy_{mode}_mode"] = result.accuracy
        row[f"train_loss_{mode}_mode"] = result.loss
    return row


@torch.no_grad()
def score(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> Score:
    """Mean loss and accuracy over batches, in the model's present mode."""
    tally: Tally | None = None
    for pixels, labels in batches:
        tally = tally or Tally(pixels.device)
        with autocast(pixels.device, precision):
            logits = model(pixels).float()
        tally.add(F.cross_entropy(logits, labels), logits, labels)
    if tally is None:
        raise ValueError("no batches to score")
    return tally.take()


def checkpoint(epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Row:
    """Everything needed to go on after this epoch; random numbers derive from the seed."""
    return {
        "version": 1,
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def restore(folder: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the folder's checkpoint if there is one; returns the number of finished epochs."""
    if not folder.has("checkpoint.pt"):
        return 0
    state = folder.load_checkpoint()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    folder.truncate_after(state["epoch"])
    return int(state["epoch"])
