"""What is measured of a run's network, at the end of an epoch and of the run. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config.schema import Config, Recalibration
from vshift.data import ImageSet, Part, Stream, plain_stream
from vshift.shift.decompose import Decomposition, decompose
from vshift.shift.mode_matrix import mode_costs, mode_matrix, monte_carlo
from vshift.shift.modes import BNState, batch_statistics, load_bn_state, restoring_state
from vshift.shift.noise_graph import noise_in_front
from vshift.shift.recalibration import Method, NotFiniteError, estimate_statistics
from vshift.shift.stats import PooledMoments, batch_norms, pooled_moments, running_moments
from vshift.shift.stats import shift_ratio as ratio_of
from vshift.train.device import autocast
from vshift.train.objective import make_objective
from vshift.train.seeding import derive_seed
from vshift.train.step import MetricAccumulator, Score

Row = dict[str, Any]
Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class TrainingContext:
    """A run's network with its data: what the functions below measure.

    `check_stop` is called before every batch, so that a signal can interrupt an evaluation that
    takes minutes.
    """

    config: Config
    seed: int
    model: nn.Module
    images: ImageSet
    stream: Stream
    check_stop: Callable[[], None] = _nothing

    @cached_property
    def noisy(self) -> frozenset[str]:
        """The BN layers with noise in front of them; tracing the network finds them, once."""
        return frozenset(name for name, noise in noise_in_front(self.model).items() if noise)

    def autocast(self) -> Any:
        return autocast(self.images.train.images.device, self.config.hardware.precision)

    def augmented(self, epoch: int, limit: int | None) -> Pairs:
        """Training batches with crop and flip, the same at every call; all with limit None."""
        purpose = derive_seed(self.seed, epoch, "measure")
        return lambda: self._watched(islice(self.stream.epoch(purpose), limit))

    def plain(self, part: Part, limit: int | None = None) -> Pairs:
        """A part's images as they are, shuffled, in batches of the training's size.

        Files come class by class: in that order a batch would be no random sample, and its
        statistics one class's.
        """
        size = self.config.data.batch_size
        if len(part) % size == 1:  # one image alone has no batch statistics in an mlp
            size += 1
        stream = plain_stream(self.images, part, size)
        purpose = derive_seed(self.seed, 0, "shuffle")
        return lambda: self._watched(islice(stream.epoch(purpose), limit))

    def to_test(self, part: Part) -> Iterable[tuple[Tensor, Tensor]]:
        """Every image of a part, for scores in eval mode."""
        if getattr(self.config.norm, "eval_statistics", "running") == "batch":
            return self.plain(part)()  # the score depends on who is in a batch
        return self._watched(plain_stream(self.images, part).plain())

    def _watched(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            self.check_stop()
            yield batch


def _images(pairs: Pairs) -> Callable[[], Iterator[Tensor]]:
    return lambda: (pixels for pixels, _ in pairs())


@torch.no_grad()
def score(context: TrainingContext, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Mean loss and accuracy over batches, in the model's present mode."""
    tally = MetricAccumulator(context.images.train.images.device)
    objective = make_objective(context.config)
    for pixels, labels in batches:
        with context.autocast():
            output = context.model(pixels).float()
        tally.add(*objective(output, pixels, labels), len(labels))
    return tally.compute_and_reset()


def test_scores(context: TrainingContext) -> Row:
    """Test loss and accuracy, and the validation part's where there is one, in eval mode."""
    parts = {"test": context.images.test, "validation": context.images.validation}
    row: Row = {}
    for name, part in parts.items():
        if part is not None:
            with restoring_state(context.model):
                context.model.eval()
                found = score(context, context.to_test(part))
            row |= {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy}
    return row


def train_scores(context: TrainingContext, epoch: int) -> Row:
    """Accuracy on all augmented training images, in eval and in train mode.

    In train mode noise is on and BN uses each batch's statistics; buffers stay as they are.
    """
    row: Row = {}
    for mode in ("eval", "train"):
        with restoring_state(context.model):
            context.model.train(mode == "train")
            torch.manual_seed(derive_seed(context.seed, epoch, "final noise"))
            found = score(context, context.augmented(epoch, None)())
        row[f"train_accuracy_{mode}_mode"] = found.accuracy
        row[f"train_loss_{mode}_mode"] = found.loss
    return row


@torch.no_grad()
def code_scores(context: TrainingContext) -> Row:
    """An autoencoder's code, its last hidden layer, on the test images: how much of it is on."""
    coder = nn.Sequential(*list(context.model.children())[:-1])
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    with restoring_state(context.model), context.autocast():
        context.model.eval()
        for pixels, _ in context.to_test(context.images.test):
            code = coder(pixels).double().cpu()
            sums += torch.stack([code.sum(), (code > 0.5).double().sum()])
            count += code.numel()
    mean, active = (sums / count).tolist()
    return {"code_mean_activity": mean, "code_share_above_half": active}


def measures_layers_at(config: Config, epoch: int) -> bool:
    """Whether the layers' variances are written at this epoch: each n-th, and the last."""
    every = config.measure.every
    return bool(every) and (epoch % every == 0 or epoch == config.epochs)


def measures_eval_at(config: Config, epoch: int) -> bool:
    """Whether eval_variance is measured at this epoch: those named, and the last."""
    named = config.measure.eval_epochs
    return epoch == config.epochs or named == "all" or epoch in named


def eval_moments(context: TrainingContext, epoch: int) -> dict[str, PooledMoments]:
    """What every BN layer meets in eval mode on augmented training batches."""
    batches = context.augmented(epoch, context.config.measure.eval_batches)
    with restoring_state(context.model), context.autocast():
        context.model.eval()
        return pooled_moments(context.model, _images(batches))


def explanations(context: TrainingContext, epoch: int) -> dict[str, Decomposition]:
    """Each layer's shift split into local and inherited, with the prediction; {} if turned off."""
    limit = context.config.measure.explain_batches
    if not limit or not batch_norms(context.model):
        return {}
    batches = context.augmented(epoch, limit)
    with context.autocast():
        return decompose(
            context.model, _images(batches), derive_seed(context.seed, epoch, "explain noise")
        )


def recalibrations(
    context: TrainingContext, how: Recalibration, epoch: int
) -> tuple[list[Row], dict[str, BNState]]:
    """Re-estimate BN statistics by every method asked for, and test with each.

    Returns:
        A row for each method, and the new statistics by method (none for `batch` and `mix`, which
        are ways to test). Where a method finds no finite statistics, its row has no scores and
        says so as `problem`.
    """
    if not batch_norms(context.model):
        return [], {}
    part = context.images.train
    batches = (
        context.augmented(epoch, how.batches) if how.augment else context.plain(part, how.batches)
    )
    rows: list[Row] = []
    states: dict[str, BNState] = {}
    for method in how.methods:
        with restoring_state(context.model):
            if method == "batch" or method == "mix":
                own = 1.0 if method == "batch" else how.batch_weight
                tested = _with_batch_statistics(context, own)
            else:
                torch.manual_seed(derive_seed(context.seed, epoch, "recalibration noise"))
                try:
                    states[method] = _estimated(context, how, method, batches)
                    load_bn_state(context.model, states[method])
                    tested = test_scores(context) | _ratios(context, epoch)
                except NotFiniteError as error:
                    tested = {"test_loss": None, "test_accuracy": None, "problem": str(error)}
        # `own` is the column's name in run folders, from before the key was called batch_weight.
        options = how.model_dump(exclude={"methods", "batch_weight"}) | {"own": how.batch_weight}
        rows.append({"method": method, **options, **tested})
    return rows, states


def _estimated(
    context: TrainingContext, how: Recalibration, method: Method, batches: Pairs
) -> BNState:
    with context.autocast():
        return estimate_statistics(
            context.model,
            _images(batches),
            method,
            moments=how.moments,
            estimator=how.estimator,
            at_once=method == "layerwise",
        )


def _with_batch_statistics(context: TrainingContext, own: float) -> Row:
    """Test with BN on a mix of each test batch's own statistics and the running ones."""
    with batch_statistics(context.model, own):
        found = score(context, context.plain(context.images.test)())
    return {"test_loss": found.loss, "test_accuracy": found.accuracy, "own": own}


def _ratios(context: TrainingContext, epoch: int) -> Row:
    """Shift ratios with the model's present statistics."""
    eval_stats, running = eval_moments(context, epoch), running_moments(context.model)
    ratios = [
        ratio_of(running[name].variance, eval_stats[name].average_variance) for name in eval_stats
    ]
    return {"shift_ratio_mean": sum(ratios) / len(ratios), "shift_ratio_max": max(ratios)}


def mode_rows(context: TrainingContext, states: dict[str, BNState], epoch: int) -> list[Row]:
    """The mode matrix on test images and on augmented training images."""
    parts = {
        "train": context.augmented(epoch, context.config.measure.eval_batches),
        "test": context.plain(context.images.test),
    }
    seed = derive_seed(context.seed, epoch, "mode noise")
    rows = []
    for name, batches in parts.items():
        with context.autocast():
            found = mode_matrix(context.model, batches, states, seed=seed)
        rows += [{"data": name, **row} for row in found]
    return rows


def mode_summary(rows: list[Row]) -> Row:
    """The test part's costs in points: of the noise, of stale statistics, and what came back."""
    costs = mode_costs([row for row in rows if row["data"] == "test"])
    return {f"test_{key.replace('.', '_')}": value for key, value in costs.items()}


def monte_carlo_scores(context: TrainingContext, passes: int, epoch: int) -> Row:
    """Monte Carlo dropout on the test images: noise on, BN on running statistics, k passes."""
    seed = derive_seed(context.seed, epoch, "monte carlo")
    watched = context.model.register_forward_pre_hook(lambda *_: context.check_stop())
    try:
        with context.autocast():
            found = monte_carlo(context.model, context.plain(context.images.test), passes, seed)
    finally:
        watched.remove()
    return {
        "monte_carlo_passes": found.passes,
        "monte_carlo_accuracy": found.accuracy,
        "monte_carlo_loss": found.loss,
        "monte_carlo_pass_accuracy": found.pass_accuracy,
        "monte_carlo_accuracy_sd": found.accuracy_sd,
        "monte_carlo_spread": float(found.spread.mean()),
    }
