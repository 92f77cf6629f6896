"""Faults that no batch norm's running statistics show: eval mode computes something else.

As in `kinds`, each is planted by `plant(net, seed, broken)`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.broken_modes import Adapter, OnlyInEval
from examples.patients import Batches, Net, Patient, fit
from tests.auditing.nets import NETS, built, healthy, inputs

FEATURES = {"MLP": 32, "convolutional": 8 * 16}


def train(model: Any, batches: Batches) -> Any:
    return fit(model, batches, epochs=5, rate=0.05)


def merged_without_transpose(net: str, seed: int, broken: bool) -> Patient:
    """The update of an adapter is merged in the wrong order."""
    torch.manual_seed(seed)
    model, batches = NETS[net](), inputs(net, seed)
    model.fc = Adapter(FEATURES[net], 4)
    train(model, batches)
    model.fc.merges_transposed = broken
    return Patient(model, batches, ("fc",))


class OwnNorm(nn.Module):
    """A batch norm of one's own, with running statistics in its buffers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("mean"), self.get_buffer("var")
        if self.training:
            new_mean, new_var = x.mean(0), x.var(0)
            mean.lerp_(new_mean.detach(), 0.1)
            var.lerp_(new_var.detach(), 0.1)
            mean, var = new_mean, new_var
        return (x - mean) / (var + 1e-5).sqrt()


def own_norm_lost(net: str, seed: int, broken: bool) -> Patient:
    """The running statistics of a norm of one's own are lost."""
    model, batches = built(net, seed, after_bn=OwnNorm(FEATURES[net]))
    if broken:
        model.after_bn.get_buffer("mean").fill_(2.0)
        model.after_bn.get_buffer("var").fill_(1e-2)
    return Patient(model, batches, ("after_bn",))


class InputStatistics(nn.Module):
    """Normalises inputs by the mean and the deviation of all that training has shown it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.count = 0
        self.mean, self.squares = torch.zeros(channels), torch.ones(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            values = x.detach().transpose(0, 1).flatten(1)
            share = len(x) / (self.count + len(x))
            self.mean = torch.lerp(self.mean, values.mean(1), share)
            self.squares = torch.lerp(self.squares, values.square().mean(1), share)
            self.count += len(x)
        deviation = (self.squares - self.mean.square()).clamp(min=1e-6).sqrt()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return (x - self.mean.view(shape)) / deviation.view(shape)


def input_statistics_lost(net: str, seed: int, broken: bool) -> Patient:
    """The statistics that inputs are normalised by are plain attributes, in no checkpoint."""
    torch.manual_seed(seed)
    batches = [(20 * x + 50, y) for x, y in inputs(net, seed)]
    channels = batches[0][0].shape[1]
    model = train(nn.Sequential(InputStatistics(channels), NETS[net]()), batches)
    if broken:
        model[0] = InputStatistics(channels)
    return Patient(model, batches, ("0",))


class Codebook(nn.Module):
    """The nearest of 32 vectors for every two features; eval mode takes their moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(32, 2))
        self.register_buffer("average", torch.randn(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(-1, 2)
        vectors = self.vectors if self.training else self.get_buffer("average")
        nearest = torch.cdist(parts, vectors).argmin(1)
        if self.training:
            with torch.no_grad():
                chosen = F.one_hot(nearest, len(vectors)).to(parts)
                counts = chosen.sum(0)[:, None]
                means = torch.where(counts > 0, chosen.T @ parts / counts.clamp(min=1), vectors)
                self.vectors.lerp_(means, 0.2)
                self.get_buffer("average").lerp_(self.vectors, 0.2)
        return (parts + (vectors[nearest] - parts).detach()).view_as(x)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Per sample."""
    return (output - target).square().flatten(1).mean(1)


def codebook_lost(net: str, seed: int, broken: bool) -> Patient:
    """An autoencoder, whose codebook's moving average is the initial one."""
    torch.manual_seed(seed)
    shape = inputs(net, seed)[0][0].shape[1:]
    size = shape.numel()
    basis = torch.randn(6, size) / 6**0.5  # what an autoencoder can learn
    rows = (torch.randn(512, 6) @ basis).view(-1, *shape)
    batches = [(x, x) for x in rows.split(32)]
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16),
        Codebook(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, size), nn.Unflatten(1, shape),
    )  # fmt: skip
    fit(model, batches, 8, 0.005, loss=lambda output, x: size * squared_error(output, x).mean())
    if broken:
        cast(Codebook, model[5]).get_buffer("average").normal_()
    return Patient(model, batches, ("5",), {"loss": squared_error})


def norm_only_in_eval(net: str, seed: int, broken: bool) -> Patient:
    torch.manual_seed(seed)
    model, batches = NETS[net](), inputs(net, seed)
    model.bn2 = cast(Any, OnlyInEval(model.bn2, not broken))
    return Patient(train(model, batches), batches, ("bn2.norm",))


class Branch(nn.Module):
    """A part of its own in each mode, of which only the first is trained."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(features, features), nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.training else self.other(x)


class SkipsForOne(nn.Module):
    """A network whose first batch norm is left out where a batch is a single sample."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, self.norm = net, net.bn1
        net.bn1 = cast(Any, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.conv1(x)
        x = (self.norm(x) if len(x) > 1 else x).relu()
        x = self.net.bn2(self.net.conv2(x)).relu()
        return self.net.head(self.net.bn3(self.net.conv3(x)).relu())


def skipped_for_one(net: str, seed: int, broken: bool) -> Patient:
    """A batch norm is skipped for single samples, which is how the loader serves them."""
    model, batches = healthy(net, seed)
    with torch.no_grad():
        model.conv1.bias += 3
        cast(Tensor, model.bn1.running_mean).add_(3)
    images, labels = (torch.cat(parts)[:256] for parts in zip(*batches, strict=True))
    single = list(zip(images.split(1), labels.split(1), strict=True))
    return Patient(SkipsForOne(model) if broken else model, single, (None,), {"batches": 256})


class MadeInForward(nn.Module):
    """A batch norm that forward() makes anew, or that is a child."""

    def __init__(self, norm: nn.Module, is_child: bool) -> None:
        super().__init__()
        self.kind, self.features = type(norm), cast(Any, norm).num_features
        self.norm = norm if is_child else None

    def forward(self, x: Tensor) -> Tensor:
        return (self.kind(self.features) if self.norm is None else self.norm)(x)


def made_in_forward(net: str, seed: int, broken: bool) -> Patient:
    torch.manual_seed(seed)
    model, batches = NETS[net](), inputs(net, seed)
    model.bn2 = cast(Any, MadeInForward(model.bn2, not broken))
    return Patient(train(model, batches), batches, (f"bn2.<{type(model.bn1).__name__}>",))


def overflow_in_half_precision(net: str, seed: int, broken: bool) -> Patient:
    """The variance of a layer's input is more than float16 holds; the twin's is a tenth."""
    model, batches = healthy(net, seed)
    scale = 3000.0 if broken else 10.0
    with torch.no_grad():
        for parameter in model.conv2.parameters():
            parameter *= scale
        cast(Tensor, model.bn2.running_mean).mul_(scale)
        cast(Tensor, model.bn2.running_var).mul_(scale**2)
    return Patient(model.half(), [(x.half(), y) for x, y in batches], ("bn2",))


def without_running_statistics(net: str, seed: int, broken: bool) -> Patient:
    """A sample's output depends on its batch mates, and re-estimating gains nothing."""
    torch.manual_seed(seed)
    model, batches = NETS[net](), inputs(net, seed)
    kind = type(model.bn2)
    model.bn2 = kind(model.bn2.num_features, track_running_stats=not broken)
    return Patient(train(model, batches), batches, ("bn2",))
