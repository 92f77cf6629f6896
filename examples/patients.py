"""Shared by the examples: a small network, synthetic images, a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Patient:
    """The arguments of an audit, and the `layers` that its finding may name."""

    model: nn.Module
    loader: Iterable[Any]
    layers: tuple[str | None, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def data(seed: int, count: int = 512, size: int = 32, scale: float = 1.0) -> Batches:
    """Images [N, 3, 8, 8] of 4 classes, each a faint pattern with noise, in random order."""
    patterns = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1234))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    images = scale * (0.6 * patterns[labels] + noise + 0.5)
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, count, size)]


def vectors(seed: int, count: int = 1024, size: int = 32) -> Batches:
    """Vectors [N, 20] of 4 classes, each a centre with noise, in random order."""
    centres = torch.randn(4, 20, generator=torch.Generator().manual_seed(1234))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    rows = 0.7 * centres[labels] + torch.randn(count, 20, generator=generator) + 0.3
    return [(rows[i : i + size], labels[i : i + size]) for i in range(0, count, size)]


class Net(nn.Module):
    """Three times convolution, BN, ReLU; `noise` goes before the second BN or after the last."""

    def __init__(self, momentum: float | None = 0.1, **noise: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=momentum)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=momentum)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=momentum)
        self.before_bn2 = noise.get("before_bn2", nn.Identity())
        self.after_bn = noise.get("after_bn", nn.Identity())
        self.fc = nn.Linear(8 * 16, 4)

    def features(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.before_bn2(self.conv2(x))).relu()
        return self.bn3(self.conv3(x)).relu()

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.after_bn(F.avg_pool2d(x, 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Dense(Net):
    """The same network of linear layers, which keep their names, for `vectors`."""

    def __init__(self, momentum: float | None = 0.1, **noise: nn.Module) -> None:
        super().__init__(momentum, **noise)
        for i in (1, 2, 3):
            setattr(self, f"conv{i}", nn.Linear(20 if i == 1 else 32, 32))
            setattr(self, f"bn{i}", nn.BatchNorm1d(32, momentum=momentum))
        self.fc = nn.Linear(32, 4)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.after_bn(x))


def fit(
    model: nn.Module,
    batches: Batches,
    epochs: int = 3,
    rate: float = 0.1,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> nn.Module:
    """Train with SGD and a linearly falling learning rate; the model stays in train mode."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, epochs * len(batches))
    model.train()
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model


def trained(seed: int, model: nn.Module | None = None, **how: Any) -> tuple[nn.Module, Batches]:
    """A model trained on `data(seed)`, and these batches."""
    torch.manual_seed(seed)
    batches = data(seed)
    return fit(Net() if model is None else model, batches, **how), batches


def norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a model by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
