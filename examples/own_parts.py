"""Parts of one's own: how vshift calls each of them. `vshift train examples/own_parts.yaml`"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Told `classes`, `channels` and `size` where the signature asks for them."""

    def __init__(self, classes: int, channels: int, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


class Cauchy(nn.Module):
    """Noise: random in training only. Without `variance`, its s², nothing is predicted."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + self.scale * torch.tan(math.pi * (torch.rand_like(x) - 0.5)).clamp(-9, 9))


class Centred(nn.Module):
    """A norm: told the `channels` of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((0, 2, 3), keepdim=True) + self.shift[:, None, None]


def data(count: int = 400) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, test), each (images [N, C, H, W], targets [N])."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 16, 16, generator=generator) + labels[:, None, None, None] / 8
    return (images[: count // 2], labels[: count // 2]), (
        images[count // 2 :],
        labels[count // 2 :],
    )


def optimizer(params: list[Tensor], lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """What `torch.optim.Optimizer` is, from `params` and `lr`."""
    return torch.optim.SGD(params, lr, momentum=momentum)


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate at each step; `epoch` and `epochs` may be asked for, too."""
    return 1 - step / steps


def focal(output: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """The loss of a batch, from float32 outputs."""
    log_p = output.log_softmax(1).gather(1, targets[:, None])
    return -((1 - log_p.exp()) ** gamma * log_p).mean()
