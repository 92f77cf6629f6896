"""Broken models whose fault is not in batch norm: instance norm, spectral norm, custom modules.

Run them with the others: `python -m examples.broken_models noise_scale`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.patients import Net, Patient, data, fit, trained


def instance_norm(seed: int, broken: bool) -> Patient:
    """Instance norm with running statistics: eval mode normalises differently from training."""
    torch.manual_seed(seed)
    model = Net()
    model.bn2 = nn.InstanceNorm2d(8, affine=True, track_running_stats=broken)  # type: ignore[assignment]
    contrast = torch.rand(16, 32, 1, 1, 1) * 3 + 0.2  # which instance norm removes
    batches = [(x * c, y) for (x, y), c in zip(data(seed), contrast, strict=True)]
    model.bn1 = nn.Identity()  # type: ignore[assignment]
    return Patient(fit(model, batches, rate=0.02), batches, ("bn2",))


def spectral_norm(seed: int, broken: bool) -> Patient:
    """Spectral norm whose weights were loaded, but not its vectors."""
    torch.manual_seed(seed)
    model, batches = Net(), data(seed)
    nn.utils.parametrizations.spectral_norm(model.fc)
    fit(model, batches)
    if broken:
        vectors = model.fc.parametrizations["weight"][0]
        for name in ("_u", "_v"):
            vector = torch.randn_like(getattr(vectors, name))
            getattr(vectors, name).copy_(vector / vector.norm())
    return Patient(model, batches, ("fc",))


class OwnDropout(nn.Module):
    """A hand-written dropout, with or without the factor 1/(1 − rate)."""

    def __init__(self, rate: float, scaled: bool) -> None:
        super().__init__()
        self.rate, self.scaled = rate, scaled

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        x = x * (torch.rand_like(x) >= self.rate)
        return x / (1 - self.rate) if self.scaled else x


def noise_scale(seed: int, broken: bool) -> Patient:
    """A hand-written dropout before the classifier, without the factor 1/(1 − rate)."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Net(after_bn=OwnDropout(0.7, not broken))), ("after_bn",))


class OwnNorm(nn.Module):
    """Divides by the batch's largest value in training, and by a running average in eval mode."""

    def __init__(self, remembers: bool) -> None:
        super().__init__()
        self.remembers = remembers
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x / self.get_buffer("largest")
        if self.remembers:
            self.get_buffer("largest").lerp_(x.detach().abs().max(), 0.1)
        return x / x.detach().abs().max()


def output_nonfinite(seed: int, broken: bool) -> Patient:
    """A hand-written running scale that is never updated."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Net(after_bn=OwnNorm(not broken))), ("after_bn",))
