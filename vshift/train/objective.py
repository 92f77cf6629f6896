"""What a run minimises, how its answers are scored, and the sums of both over batches."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.config import own_code
from vshift.config.loss import CrossEntropy, OwnLoss
from vshift.config.networks import Autoencoder
from vshift.config.schema import Config
from vshift.data import ImageSet, Part, plain_stream
from vshift.data.mixing import one_hot
from vshift.errors import ConfigError

# (output, targets) → mean loss of the batch
Loss = Callable[[Tensor, Tensor], Tensor]
# (output, images, labels) → mean loss, and sums that `MetricAccumulator` makes a score of
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def make_objective(config: Config, images: ImageSet) -> Objective:
    """The objective that the config's network is trained and scored by.

    Raises:
        ConfigError: the loss is not one for what the images' labels are.
    """
    loss = make_loss(config, images)
    if isinstance(config.network, Autoencoder):
        return reconstruction(loss)
    return classification(loss) if images.classes else regression(loss)


def make_loss(config: Config, images: ImageSet) -> Loss:
    """The config's loss; by default cross-entropy for classes, the mean squared error for numbers.

    Raises:
        ConfigError: cross-entropy of numbers.
    """
    section = config.loss
    if isinstance(section, CrossEntropy) and not images.classes:
        raise ConfigError(
            f"loss.name: cross_entropy is for classes, and the targets of {images.name} are "
            "numbers; leave the section out, or write {name: mse}"
        )
    if isinstance(section, OwnLoss):
        return own_loss(section, config, images)
    if isinstance(config.network, Autoencoder) or not images.classes:
        return F.mse_loss
    if section is None or isinstance(section, CrossEntropy):
        smoothing = section.label_smoothing if section else 0.0
        return partial(F.cross_entropy, label_smoothing=smoothing)
    return squared_error_of_logits


def own_loss(section: OwnLoss, config: Config, images: ImageSet) -> Loss:
    """A loss of one's own, tried on targets of two images.

    Raises:
        ConfigError: it cannot be called so, raises, or gives no loss.
    """
    function = own_code.import_object(section.reference)
    if isinstance(function, type):
        function = own_code.call(section)
    elif section.args:
        names = list(inspect.signature(function).parameters)[:2]  # the output and the targets
        own_code.arguments(function, section, dict.fromkeys(names))
        function = partial(function, **section.args)
    if isinstance(function, nn.Module):
        function.to(images.train.images.device)

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = function(output, targets)
        return value.mean() if isinstance(value, Tensor) and value.ndim == 1 else value

    few = Part(images.train.images[:2], images.train.labels[:2])
    ((inputs, targets),) = plain_stream(images, few).plain()
    if isinstance(config.network, Autoencoder):
        targets = inputs.flatten(1)
    outputs = targets.shape[1] if targets.is_floating_point() else images.outputs
    _try(loss, section.name, outputs, targets)
    if config.data.augment.mixes and not targets.is_floating_point():
        _try(loss, section.name, outputs, one_hot(targets, outputs))
    return loss


def _try(loss: Loss, name: str, outputs: int, targets: Tensor) -> None:
    """Call a loss of one's own; ConfigError if what it gives cannot be minimised."""
    output = torch.zeros(len(targets), outputs, device=targets.device, requires_grad=True)
    what = f"loss.name: {name}"
    with own_code.running(
        f"{what} of outputs {list(output.shape)} and targets {list(targets.shape)}"
    ):
        value = loss(output, targets)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        given = f"a value of type {type(value).__name__}"
        if isinstance(value, Tensor):
            given = f"a tensor {list(value.shape)} of {value.dtype}"
        raise ConfigError(
            f"{what} gives {given}; it must give the mean loss as a tensor, or a loss for each "
            "image"
        )
    if not value.requires_grad:
        raise ConfigError(
            f"{what} gives a loss that does not depend on the output: nothing to train; detach() "
            "or item() cuts it off"
        )


def squared_error_of_logits(output: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of logits [N, K] against 1 for the right class and 0 for the others.

    Hui and Belkin 2021 (arXiv 2006.07322), without their factors for many classes.
    """
    return F.mse_loss(output, one_hot(labels, output.shape[1]))


def classification(loss: Loss) -> Objective:
    """Of logits [N, K] and classes [N] or, mixed, distributions [N, K]; counts right answers.

    A mixture is answered right to the share of the class that is answered.
    """

    def objective(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        answers = output.argmax(1)
        if labels.is_floating_point():
            right = labels.gather(1, answers[:, None])[:, 0]
        else:
            right = answers == labels
        return loss(output, labels), right.sum()

    return objective


def regression(loss: Loss) -> Objective:
    """Of numbers [N, D] and their targets [N, D]; sums what `_fit` makes RMSE and R² of."""

    def objective(output: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        numbers = targets.double()
        errors = (output.detach().double() - numbers).square()
        sums = torch.stack([errors, numbers, numbers.square()]).sum(1)
        return loss(output, targets), sums

    return objective


def reconstruction(loss: Loss) -> Objective:
    """Of [N, C·H·W] against the images as the network got them; scores nothing but the loss.

    Images are normalised to variance 1, so a squared error of 1 is that of answering with the
    training images' mean colour.
    """

    def objective(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return loss(output, images.flatten(1).float()), output.new_full((), torch.nan)

    return objective


@dataclass(frozen=True)
class Metrics:
    """Scores of `count` images.

    Attributes:
        loss: mean loss.
        accuracy: percent; None where nothing is classified.
        rmse: root of the mean squared error, in the targets' own units; None without numbers.
        r2: 1 − squared error / squared distance of the targets from their mean, averaged over the
            numbers of a target; None without numbers or where all targets are the same.
    """

    loss: float
    accuracy: float | None
    count: int
    rmse: float | None = None
    r2: float | None = None

    def columns(self, pattern: str = "{}") -> dict[str, Any]:
        """The scores by column: `test_loss`, `test_accuracy`, … for the pattern `test_{}`."""
        scores: dict[str, Any] = {"loss": self.loss, "accuracy": self.accuracy}
        if self.rmse is not None:
            scores |= {"rmse": self.rmse, "r2": self.r2}
        return {pattern.format(name): value for name, value in scores.items()}


class MetricAccumulator:
    """Sums losses and scores on the device; one copy to the host per result.

    Args:
        target_std: [D], of numbers to predict, in their own units; None for classes.
    """

    def __init__(self, device: torch.device | str, target_std: Tensor | None = None) -> None:
        self._target_std = None if target_std is None else target_std.cpu()
        scores = 1 if target_std is None else 3 * len(target_std)
        self._sums = torch.zeros(2 + scores, dtype=torch.float64, device=device)
        self._images: dict[int, Tensor] = {}

    def add(self, loss: Tensor, score: Tensor, count: int) -> None:
        """Add a batch of `count` images: what its objective gave.

        The count is summed on the device too, so that a captured graph can do all of it.
        """
        if count not in self._images:
            self._images[count] = torch.full_like(self._sums[:1], count)
        losses = loss.detach().double().view(1) * count
        self._sums += torch.cat([losses, score.double().flatten(), self._images[count]])

    def compute_and_reset(self) -> Metrics:
        """The metrics since the last call."""
        sums = self._sums.to("cpu", copy=True)
        self._sums.zero_()
        images, scores = float(sums[-1]), sums[1:-1]
        count = max(images, 1)
        loss = float(sums[0]) / count
        if self._target_std is not None:
            rmse, r2 = _fit(scores.view(3, -1) / count, self._target_std)
            return Metrics(loss, None, int(images), rmse, r2)
        correct = float(scores[0])
        accuracy = None if math.isnan(correct) else 100 * correct / count
        return Metrics(loss, accuracy, int(images))

    def tensors(self) -> list[Tensor]:
        """The tensors on the device that `add` changes."""
        return [self._sums]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": self._sums.to("cpu", copy=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from sums that `state_dict` gave; in place, as a captured step needs it."""
        self._sums.copy_(state["sums"])


def _fit(means: Tensor, std: Tensor) -> tuple[float, float | None]:
    """RMSE and R² of the means [3, D] of squared errors, targets and their squares.

    Errors and targets are in standard deviations `std` [D]: the RMSE is taken back to the targets'
    own units, R² has none.
    """
    error, mean, square = means
    rmse = float((error * std.square()).mean().sqrt())
    variance = square - mean.square()
    varies = bool((variance > 1e-12).all())
    return rmse, float((1 - error / variance).mean()) if varies else None
