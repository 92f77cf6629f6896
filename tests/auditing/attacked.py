"""Healthy networks that are trained on adversarial samples as well, in turn or in halves.

Attacks are steps of the fast gradient sign method (Goodfellow, Shlens & Szegedy 2015, 1412.6572)
against the network as it is in that epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.patients import Batches, Net, Patient, fit
from tests.auditing.nets import NETS, inputs

STEP = 0.2  # of an input whose noise has a standard deviation of 1
EPOCHS = 5


def attacked(model: nn.Module, batches: Batches) -> Batches:
    """The batches with every value moved by STEP in the direction that raises the loss."""
    was_training = model.training
    model.eval()
    moved = []
    for x, y in batches:
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(given), y), given)
        moved.append((x + STEP * gradient.sign(), y))
    model.train(was_training)
    return moved


def in_turn(clean: Batches, moved: Batches) -> Batches:
    return [batch for pair in zip(clean, moved, strict=True) for batch in pair]


def in_halves(clean: Batches, moved: Batches) -> Batches:
    return [
        (torch.cat([x, other]), torch.cat([y, y]))
        for (x, y), (other, _) in zip(clean, moved, strict=True)
    ]


def train(model: nn.Module, clean: Batches, mix: Callable[[Batches, Batches], Batches]) -> Batches:
    """Train on clean samples mixed with attacked ones; the batches of the last network."""
    for epoch in range(EPOCHS):
        rate = 0.05 * 0.5**epoch
        fit(model, mix(clean, attacked(model, clean)), epochs=1, rate=rate)
    return mix(clean, attacked(model, clean))


def batches_in_turn(net: str, seed: int, broken: bool) -> Patient:
    torch.manual_seed(seed)
    model = NETS[net]()
    return Patient(model, train(model, inputs(net, seed), in_turn))


def halves(net: str, seed: int, broken: bool) -> Patient:
    torch.manual_seed(seed)
    model = NETS[net]()
    return Patient(model, train(model, inputs(net, seed), in_halves))


class Split(nn.Module):
    """The second half of a training batch has a batch norm of its own (AdvProp, 1911.09665)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.main, self.auxiliary = norm, type(norm)(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.main(x)
        clean, moved = x.chunk(2)
        return torch.cat([self.main(clean), self.auxiliary(moved)])


def split(model: Net, make: Callable[[Any], nn.Module]) -> Net:
    """The network with each batch norm replaced."""
    for name in ("bn1", "bn2", "bn3"):
        setattr(model, name, make(model.get_submodule(name)))
    return model


def advprop(net: str, seed: int, broken: bool) -> Patient:
    torch.manual_seed(seed)
    model = split(NETS[net](), Split)
    return Patient(model, train(model, inputs(net, seed), in_halves))


class SplitBatchNorm2d(nn.BatchNorm2d):
    """The same as one layer with another inside, as timm has it."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.auxiliary = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        clean, moved = x.chunk(2)
        return torch.cat([super().forward(clean), self.auxiliary(moved)])


def advprop_in_one_layer(seed: int) -> Patient:
    torch.manual_seed(seed)
    model = split(Net(), lambda norm: SplitBatchNorm2d(cast(int, norm.num_features)))
    return Patient(model, train(model, inputs("convolutional", seed), in_halves))


def advprop_tested_on_clean_samples(net: str, seed: int, broken: bool) -> Patient:
    patient = advprop(net, seed, broken)
    return Patient(
        patient.model, inputs(net, seed + 50), (), {"train_loader": cast(Batches, patient.loader)}
    )
