"""One training step. `EagerStep` is the readable reference for every faster one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config.schema import SGD
from vshift.device import autocast
from vshift.objective import Objective, classification
from vshift.shift.probe import TrainingLog


@dataclass(frozen=True)
class Score:
    """Mean loss and accuracy in percent (None where nothing is classified) of `count` images."""

    loss: float
    accuracy: float | None
    count: int


class Tally:
    """Sums losses and hits on the device; one copy to the host when the score is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, loss: Tensor, hits: Tensor, count: int) -> None:
        """Take in a batch of `count` images: its mean loss, and its hits or NaN."""
        self._sums += torch.stack([loss.detach().double() * count, hits.double()])
        self._count += count

    def take(self) -> Score:
        """The score since the last call, and start anew."""
        loss, hits = self._sums.tolist()
        count = max(self._count, 1)
        accuracy = None if math.isnan(hits) else 100 * hits / count
        score = Score(loss / count, accuracy, self._count)
        self._sums.zero_()
        self._count = 0
        return score

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": self._sums.cpu().clone(), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from sums that `state_dict` gave; in place, as captured steps need it."""
        self._sums.copy_(state["sums"])
        self._count = int(state["count"])


def make_optimizer(model: nn.Module, config: SGD) -> torch.optim.SGD:
    """SGD with weight decay on all parameters, or on none that has one value a channel."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in parameters if p.ndim > 1 or config.decay_norm_and_bias]
    others = [p for p in parameters if p.ndim <= 1 and not config.decay_norm_and_bias]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        foreach=True,
    )


class EagerStep:
    """Forward, backward, update, one operation after the other."""

    name = "eager"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: str,
        tally: Tally,
        log: TrainingLog | None = None,
        objective: Objective = classification,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.tally, self.log, self.objective = tally, log, objective

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> None:
        """Train on images [N, C, H, W] with labels [N]; the model is in training mode."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, self.precision):
            output = self.model(images).float()
        loss, hits = self.objective(output, images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.tally.add(loss, hits, len(labels))
        if self.log is not None:
            self.log.add()
