"""Broken models whose fault is beside batch norm: instance norm, spectral norm, parts of one's own.

They run with the others: `python -m examples.broken_models noise_scale`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.patients import Net, Patient, data, fit, trained


def instance_norm(seed: int, broken: bool) -> Patient:
    """Instance norm with running statistics: eval mode normalises otherwise than training."""
    model = Net()
    model.bn2 = nn.InstanceNorm2d(8, affine=True, track_running_stats=broken)  # type: ignore[assignment]
    torch.manual_seed(seed)
    contrast = torch.rand(16, 32, 1, 1, 1) * 3 + 0.2  # which instance norm takes out
    batches = [(x * c, y) for (x, y), c in zip(data(seed), contrast, strict=True)]
    model.bn1 = nn.Identity()  # type: ignore[assignment]
    return Patient(fit(model, batches, rate=0.02), batches, ("bn2",))


def spectral_norm(seed: int, broken: bool) -> Patient:
    """The weights of a spectral norm were loaded, its vectors were not."""
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
    """Sets values to zero in training, and forgets to make up for it."""

    def __init__(self, rate: float, scaled: bool) -> None:
        super().__init__()
        self.rate, self.scaled = rate, scaled

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        x = x * (torch.rand_like(x) >= self.rate)
        return x / (1 - self.rate) if self.scaled else x


def noise_scale(seed: int, broken: bool) -> Patient:
    """A dropout of one's own before the classifier, without the factor 1/(1 − rate)."""
    return Patient(*trained(seed, Net(after_bn=OwnDropout(0.7, not broken))), ("after_bn",))


class OwnNorm(nn.Module):
    """Divides by the batch's largest value in training, in eval mode by one it should remember."""

    def __init__(self, remembers: bool) -> None:
        super().__init__()
        self.remembers = remembers
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x / self.get_buffer("largest")
        if self.remembers:
            self.get_buffer("largest").copy_(x.detach().abs().max())
        return x / x.detach().abs().max()


def output_nonfinite(seed: int, broken: bool) -> Patient:
    """A running scale of one's own that is never updated."""
    return Patient(*trained(seed, Net(after_bn=OwnNorm(not broken))), ("after_bn",))
