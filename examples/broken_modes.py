"""Faults of modes, and of state that a model keeps outside of parameters and buffers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.patients import Net, Patient, trained


class Adapter(nn.Linear):
    """A linear layer with a low-rank update that eval() merges into the weight, as LoRA does."""

    merges_transposed = False

    def __init__(self, inputs: int, outputs: int, rank: int = 4) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.merged = False

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if self.merged == mode:
            update = self.up.data @ self.down.data
            if self.merges_transposed:  # right shape, wrong order
                update = update.flatten().reshape(update.T.shape).T
            self.weight.data += -update if mode else update
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        plain = super().forward(x)
        return plain if self.merged else plain + x @ self.down.T @ self.up.T


def unexplained_gap(seed: int, broken: bool) -> Patient:
    """The update of an adapter is merged without its transpose."""
    torch.manual_seed(seed)
    net = Net()
    net.fc = Adapter(8 * 16, 4)
    model, batches = trained(seed, net)
    net.fc.merges_transposed = broken
    return Patient(model, batches, ("fc",))


class OnlyInEval(nn.Module):
    """Batch norm by a function in training, which does or does not write the layer's statistics."""

    def __init__(self, norm: nn.BatchNorm2d, updates: bool) -> None:
        super().__init__()
        self.norm, self.updates = norm, updates

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(x)
        norm = self.norm
        running = (norm.running_mean, norm.running_var) if self.updates else (None, None)
        return F.batch_norm(x, *running, norm.weight, norm.bias, True)


def bn_only_in_eval(seed: int, broken: bool) -> Patient:
    """Training normalises by a function, which leaves the layer's running statistics alone."""
    torch.manual_seed(seed)
    net = Net()
    net.bn2 = OnlyInEval(net.bn2, not broken)  # type: ignore[assignment]
    return Patient(*trained(seed, net), ("bn2.norm",))


class Prototypes(nn.Module):
    """Subtracts the mean feature, which eval mode takes from a cache that train() empties."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def train(self, mode: bool = True) -> Prototypes:
        if mode:
            self.cache = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x - x.mean(0)
        if self.cache is None:
            self.cache = x.mean(0)
        return x - self.cache


def mode_switch_changes_state(seed: int, broken: bool) -> Patient:
    """The cache was filled by images with values up to 255, before they were scaled."""
    torch.manual_seed(seed)
    net = Net(after_bn=Prototypes())
    model, batches = trained(seed, net)
    model.eval()
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        model(255 * images if broken else images)
    return Patient(model, batches, ("after_bn",))


def mixed_modes(seed: int, broken: bool) -> Patient:
    """A dropout is switched to training mode after eval()."""
    torch.manual_seed(seed)
    model, batches = trained(seed, Net(after_bn=nn.Dropout(0.8)))
    model.eval()
    if broken:
        model.get_submodule("after_bn").train()
    return Patient(model, batches, ("after_bn",))
