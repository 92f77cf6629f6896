"""What a network is trained for: (output, images, labels) → the loss, and how many it got right."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vshift.config.networks import Autoencoder
from vshift.config.schema import Config

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def classification(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats of logits [N, K], and the number of right answers."""
    return F.cross_entropy(output, labels), (output.argmax(1) == labels).sum()


def reconstruction(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of [N, C·H·W] against the images as the network got them.

    Images are normalised to variance 1, so an error of 1 is that of answering with the training
    images' mean colour. There is nothing to get right: NaN.
    """
    return F.mse_loss(output, images.flatten(1).float()), output.new_full((), torch.nan)


def make_objective(config: Config) -> Objective:
    return reconstruction if isinstance(config.network, Autoencoder) else classification
