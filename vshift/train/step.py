"""The readable training step: the reference that every faster one is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config import schema as config
from vshift.data import Stream
from vshift.shift.training_log import TrainingLog
from vshift.train.device import autocast
from vshift.train.objective import Objective, classification
from vshift.train.sgd import SGD


@dataclass(frozen=True)
class Score:
    """Mean loss and accuracy in percent (None where nothing is classified) of `count` images."""

    loss: float
    accuracy: float | None
    count: int


class MetricAccumulator:
    """Sums losses and hits on the device; one copy to the host when the score is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._images: dict[int, Tensor] = {}

    def add(self, loss: Tensor, hits: Tensor, count: int) -> None:
        """Take in a batch of `count` images: its mean loss, and its hits or NaN.

        The count is summed on the device too, so that a captured graph can do all of it.
        """
        if count not in self._images:
            self._images[count] = torch.full_like(self._sums[0], count)
        images = self._images[count]
        self._sums += torch.stack([loss.detach().double() * count, hits.double(), images])

    def compute_and_reset(self) -> Score:
        """The score since the last call, and start anew."""
        loss, hits, images = self._sums.tolist()
        count = max(images, 1)
        accuracy = None if math.isnan(hits) else 100 * hits / count
        self._sums.zero_()
        return Score(loss / count, accuracy, int(images))

    def tensors(self) -> list[Tensor]:
        """What `add` changes, on the device."""
        return [self._sums]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": self._sums.to("cpu", copy=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from sums that `state_dict` gave; in place, as a captured step needs it."""
        self._sums.copy_(state["sums"])


def make_optimizer(model: nn.Module, config: config.SGD) -> SGD:
    """SGD with weight decay on all parameters, or on none that has one value a channel."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in parameters if p.ndim > 1 or config.decay_norm_and_bias]
    others = [p for p in parameters if p.ndim <= 1 and not config.decay_norm_and_bias]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return SGD(groups, config.learning_rate, config.momentum, config.weight_decay, config.nesterov)


class EagerStep:
    """Forward, backward, update, one operation after the other."""

    name = "eager"

    def __init__(
        self,
        model: nn.Module,
        optimizer: SGD,
        precision: str,
        tally: MetricAccumulator,
        log: TrainingLog | None = None,
        objective: Objective = classification,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.tally, self.log, self.objective = tally, log, objective
        self.forward: Callable[[Tensor], Tensor] = model

    def epoch(
        self, stream: Stream, seed: int, rates: Sequence[float], skip: int = 0
    ) -> Iterator[int]:
        """Train on an epoch's batches behind the first `skip`, each with its learning rate.

        Yields:
            How many steps were taken since the last time.
        """
        for (images, labels), rate in zip(stream.epoch(seed, skip), rates[skip:], strict=True):
            self(images, labels, rate)
            yield 1

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> None:
        """Train on images [N, C, H, W] with labels [N]; the model is in training mode."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.update(images, labels)

    def update(self, images: Tensor, labels: Tensor) -> None:
        """The step itself, with the learning rate as it is."""
        self.optimizer.zero_grad()
        with autocast(images.device, self.precision):
            output = self.forward(images).float()
        loss, hits = self.objective(output, images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.tally.add(loss, hits, labels.numel())
        if self.log is not None:
            self.log.add()


class FusedStep(EagerStep):
    """The same for a network whose layers `vshift.kernels.modules` gave to the CPU kernels."""

    name = "fused"
