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
from vshift.train.objective import objective_of
from vshift.train.seeding import derive
from vshift.train.step import Score, Tally

Row = dict[str, Any]
Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Subject:
    """A run's network with its data: what the functions below measure.

    `between` is called before each batch, and each pass over one: measuring can take minutes, and
    what it raises ends it.
    """

    config: Config
    seed: int
    model: nn.Module
    images: ImageSet
    stream: Stream
    between: Callable[[], None] = _nothing

    @cached_property
    def noisy(self) -> frozenset[str]:
        """The BN layers with noise in front of them; tracing the network finds them, once."""
        return frozenset(name for name, noise in noise_in_front(self.model).items() if noise)

    def autocast(self) -> Any:
        return autocast(self.images.train.images.device, self.config.hardware.precision)

    def augmented(self, epoch: int, limit: int | None) -> Pairs:
        """Training batches with crop and flip, the same at every call; all with limit None."""
        purpose = derive(self.seed, epoch, "measure")
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
        purpose = derive(self.seed, 0, "shuffle")
        return lambda: self._watched(islice(stream.epoch(purpose), limit))

    def to_test(self, part: Part) -> Iterable[tuple[Tensor, Tensor]]:
        """Every image of a part, for scores in eval mode."""
        if getattr(self.config.norm, "eval_statistics", "running") == "batch":
            return self.plain(part)()  # the score depends on who is in a batch
        return self._watched(plain_stream(self.images, part).plain())

    def _watched(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            self.between()
            yield batch


def _images(pairs: Pairs) -> Callable[[], Iterator[Tensor]]:
    return lambda: (pixels for pixels, _ in pairs())


@torch.no_grad()
def score(subject: Subject, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Mean loss and accuracy over batches, in the model's present mode."""
    tally = Tally(subject.images.train.images.device)
    objective = objective_of(subject.config)
    for pixels, labels in batches:
        with subject.autocast():
            output = subject.model(pixels).float()
        tally.add(*objective(output, pixels, labels), len(labels))
    return tally.take()


def test_scores(subject: Subject) -> Row:
    """Test loss and accuracy, and the validation part's where there is one, in eval mode."""
    parts = {"test": subject.images.test, "validation": subject.images.validation}
    row: Row = {}
    for name, part in parts.items():
        if part is not None:
            with restoring_state(subject.model):
                subject.model.eval()
                found = score(subject, subject.to_test(part))
            row |= {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy}
    return row


def train_scores(subject: Subject, epoch: int) -> Row:
    """Accuracy on all augmented training images, in eval and in train mode.

    In train mode noise is on and BN uses each batch's statistics; buffers stay as they are.
    """
    row: Row = {}
    for mode in ("eval", "train"):
        with restoring_state(subject.model):
            subject.model.train(mode == "train")
            torch.manual_seed(derive(subject.seed, epoch, "final noise"))
            found = score(subject, subject.augmented(epoch, None)())
        row[f"train_accuracy_{mode}_mode"] = found.accuracy
        row[f"train_loss_{mode}_mode"] = found.loss
    return row


@torch.no_grad()
def code_scores(subject: Subject) -> Row:
    """An autoencoder's code, its last hidden layer, on the test images: how much of it is on."""
    coder = nn.Sequential(*list(subject.model.children())[:-1])
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    with restoring_state(subject.model), subject.autocast():
        subject.model.eval()
        for pixels, _ in subject.to_test(subject.images.test):
            code = coder(pixels).double().cpu()
            sums += torch.stack([code.sum(), (code > 0.5).double().sum()])
            count += code.numel()
    mean, active = (sums / count).tolist()
    return {"code_mean_activity": mean, "code_share_above_half": active}


def is_measured(config: Config, epoch: int) -> bool:
    """Whether the layers' variances are written at this epoch: each n-th, and the last."""
    every = config.measure.every
    return bool(every) and (epoch % every == 0 or epoch == config.epochs)


def meets_eval(config: Config, epoch: int) -> bool:
    """Whether eval_variance is measured at this epoch: those named, and the last."""
    named = config.measure.eval_epochs
    return epoch == config.epochs or named == "all" or epoch in named


def eval_moments(subject: Subject, epoch: int) -> dict[str, PooledMoments]:
    """What every BN layer meets in eval mode on augmented training batches."""
    batches = subject.augmented(epoch, subject.config.measure.eval_batches)
    with restoring_state(subject.model), subject.autocast():
        subject.model.eval()
        return pooled_moments(subject.model, _images(batches))


def explanations(subject: Subject, epoch: int) -> dict[str, Decomposition]:
    """Each layer's shift split into local and inherited, with the prediction; {} if turned off."""
    limit = subject.config.measure.explain_batches
    if not limit or not batch_norms(subject.model):
        return {}
    batches = subject.augmented(epoch, limit)
    with subject.autocast():
        return decompose(
            subject.model, _images(batches), derive(subject.seed, epoch, "explain noise")
        )


def recalibrations(
    subject: Subject, how: Recalibration, epoch: int
) -> tuple[list[Row], dict[str, BNState]]:
    """Re-estimate BN statistics by every method asked for, and test with each.

    Returns:
        A row for each method, and the new statistics by method (none for `batch` and `mix`, which
        are ways to test). Where a method finds no finite statistics, its row has no scores and
        says so as `problem`.
    """
    if not batch_norms(subject.model):
        return [], {}
    part = subject.images.train
    batches = (
        subject.augmented(epoch, how.batches) if how.augment else subject.plain(part, how.batches)
    )
    rows: list[Row] = []
    states: dict[str, BNState] = {}
    for method in how.methods:
        with restoring_state(subject.model):
            if method == "batch" or method == "mix":
                own = 1.0 if method == "batch" else how.batch_weight
                tested = _with_batch_statistics(subject, own)
            else:
                torch.manual_seed(derive(subject.seed, epoch, "recalibration noise"))
                try:
                    states[method] = _estimated(subject, how, method, batches)
                    load_bn_state(subject.model, states[method])
                    tested = test_scores(subject) | _ratios(subject, epoch)
                except NotFiniteError as error:
                    tested = {"test_loss": None, "test_accuracy": None, "problem": str(error)}
        rows.append({"method": method, **how.model_dump(exclude={"methods"}), **tested})
    return rows, states


def _estimated(subject: Subject, how: Recalibration, method: Method, batches: Pairs) -> BNState:
    with subject.autocast():
        return estimate_statistics(
            subject.model,
            _images(batches),
            method,
            moments=how.moments,
            estimator=how.estimator,
            at_once=method == "layerwise",
        )


def _with_batch_statistics(subject: Subject, own: float) -> Row:
    """Test with BN on a mix of each test batch's own statistics and the running ones."""
    with batch_statistics(subject.model, own):
        found = score(subject, subject.plain(subject.images.test)())
    return {"test_loss": found.loss, "test_accuracy": found.accuracy, "own": own}


def _ratios(subject: Subject, epoch: int) -> Row:
    """Shift ratios with the model's present statistics."""
    met, running = eval_moments(subject, epoch), running_moments(subject.model)
    ratios = [ratio_of(running[name].variance, met[name].average_variance) for name in met]
    return {"shift_ratio_mean": sum(ratios) / len(ratios), "shift_ratio_max": max(ratios)}


def mode_rows(subject: Subject, states: dict[str, BNState], epoch: int) -> list[Row]:
    """The mode matrix on test images and on augmented training images."""
    parts = {
        "train": subject.augmented(epoch, subject.config.measure.eval_batches),
        "test": subject.plain(subject.images.test),
    }
    seed = derive(subject.seed, epoch, "mode noise")
    rows = []
    for name, batches in parts.items():
        with subject.autocast():
            found = mode_matrix(subject.model, batches, states, seed=seed)
        rows += [{"data": name, **row} for row in found]
    return rows


def mode_summary(rows: list[Row]) -> Row:
    """The test part's costs in points: of the noise, of stale statistics, and what came back."""
    costs = mode_costs([row for row in rows if row["data"] == "test"])
    return {f"test_{key.replace('.', '_')}": value for key, value in costs.items()}


def monte_carlo_scores(subject: Subject, passes: int, epoch: int) -> Row:
    """Monte Carlo dropout on the test images: noise on, BN on running statistics, k passes."""
    seed = derive(subject.seed, epoch, "monte carlo")
    watched = subject.model.register_forward_pre_hook(lambda *_: subject.between())
    try:
        with subject.autocast():
            found = monte_carlo(subject.model, subject.plain(subject.images.test), passes, seed)
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
