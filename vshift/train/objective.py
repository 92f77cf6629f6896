"""What a run minimises, how its answers are scored, and the sums of both over batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vshift.config.networks import Autoencoder
from vshift.config.schema import Config

# (output, images, labels) → mean loss, number of correct answers or NaN
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def classification(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats of logits [N, K], and the number of correct answers."""
    return F.cross_entropy(output, labels), (output.argmax(1) == labels).sum()


def reconstruction(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of [N, C·H·W] against the images as the network got them, and NaN.

    Images are normalised to variance 1, so an error of 1 is that of answering with the training
    images' mean colour.
    """
    return F.mse_loss(output, images.flatten(1).float()), output.new_full((), torch.nan)


@dataclass(frozen=True)
class Metrics:
    """Mean loss and accuracy in percent (None where nothing is classified) of `count` images."""

    loss: float
    accuracy: float | None
    count: int


class MetricAccumulator:
    """Sums losses and correct answers on the device; one copy to the host per result."""

    def __init__(self, device: torch.device | str) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._images: dict[int, Tensor] = {}

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        """Add a batch of `count` images: its mean loss, and its correct answers or NaN.

        The count is summed on the device too, so that a captured graph can do all of it.
        """
        if count not in self._images:
            self._images[count] = torch.full_like(self._sums[0], count)
        images = self._images[count]
        self._sums += torch.stack([loss.detach().double() * count, correct.double(), images])

    def compute_and_reset(self) -> Metrics:
        """The metrics since the last call."""
        loss, correct, images = self._sums.tolist()
        count = max(images, 1)
        accuracy = None if math.isnan(correct) else 100 * correct / count
        self._sums.zero_()
        return Metrics(loss / count, accuracy, int(images))

    def tensors(self) -> list[Tensor]:
        """The tensors on the device that `add` changes."""
        return [self._sums]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        return {"sums": self._sums.to("cpu", copy=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from sums that `state_dict` gave; in place, as a captured step needs it."""
        self._sums.copy_(state["sums"])


def make_objective(config: Config) -> Objective:
    """The objective that the config's network is trained and scored by."""
    return reconstruction if isinstance(config.network, Autoencoder) else classification
