"""Healthy models that an audit must say nothing about."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.patients import Net, Patient, data, fit, trained


class WithoutBatchNorm(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Dropout(0.3),
            nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Dropout2d(0.2),
        )  # fmt: skip
        self.fc = nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))


def layer_norm_with_dropout(seed: int) -> Patient:
    return Patient(*trained(seed, WithoutBatchNorm(lambda c: nn.LayerNorm([c, 8, 8])), rate=0.02))


def group_norm_with_dropout(seed: int) -> Patient:
    return Patient(*trained(seed, WithoutBatchNorm(lambda c: nn.GroupNorm(2, c)), rate=0.02))


def dropout_after_the_last_bn(seed: int) -> Patient:
    return Patient(*trained(seed, Net(after_bn=nn.Dropout(0.5))))


def small_batches_within_the_noise(seed: int) -> Patient:
    torch.manual_seed(seed)
    batches = data(seed, 256, 8)
    return Patient(fit(Net(), batches, rate=0.02), batches)


def cumulative_average(seed: int) -> Patient:
    model, batches = trained(seed, Net(momentum=None), epochs=2)
    for layer in (model.bn1, model.bn2, model.bn3):
        layer.reset_running_stats()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    return Patient(model, batches)


def average_with_buffers(seed: int) -> Patient:
    torch.manual_seed(seed)
    batches = data(seed)
    model = Net()
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=False
    )
    for _ in range(4):
        fit(model, batches, epochs=1, rate=0.005)
        mean.update_parameters(model)
    averaged = copy.deepcopy(mean.module)
    for (_, mine), (_, theirs) in zip(averaged.named_buffers(), model.named_buffers(), strict=True):
        mine.copy_(theirs)
    return Patient(averaged, batches)


def twenty_stacked(seed: int) -> Patient:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(20):
        layers += [nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 4))
    batches = data(seed, 256)
    return Patient(fit(model, batches, epochs=8, rate=0.01), batches)


class FrozenBatchNorm(nn.BatchNorm2d):
    """At identity for ever, in training too."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


def frozen_at_identity(seed: int) -> Patient:
    torch.manual_seed(seed)
    model = Net()
    model.bn2 = FrozenBatchNorm(8)
    return Patient(*trained(seed, model))


def frozen_by_hand(seed: int) -> Patient:
    """Eval mode is set after every train(); the audit gets the model in eval mode."""
    torch.manual_seed(seed)
    model, batches = Net(), data(seed)
    model.bn2.requires_grad_(False)
    hook = model.bn2.register_forward_pre_hook(lambda layer, _: layer.eval() and None)
    fit(model, batches)
    hook.remove()
    return Patient(model.eval(), batches)


class MonteCarlo(nn.Dropout):
    """Random in eval mode on purpose."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, True)


def allowed_monte_carlo(seed: int) -> Patient:
    patient = Patient(*trained(seed, Net(after_bn=MonteCarlo(0.3))))
    patient.options["allow_noise"] = ["after_bn"]
    return patient


SILENT = (
    layer_norm_with_dropout, group_norm_with_dropout, dropout_after_the_last_bn,
    small_batches_within_the_noise, cumulative_average, average_with_buffers, twenty_stacked,
    frozen_at_identity, frozen_by_hand, allowed_monte_carlo,
)  # fmt: skip
