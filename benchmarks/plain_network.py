"""The same network from PyTorch's own layers, for the loops of `peers.py`.

A peer must not run vshift's batch norm or noise, and must train the same architecture. So the
network that vshift builds has those layers replaced, one for one, by what people write in PyTorch:

| vshift | here |
|---|---|
| `BatchNorm` | `torch.nn.BatchNorm2d` |
| `Dropout` | `torch.nn.Dropout` |
| `Gaussian` | `x * (1 + σ · torch.randn_like(x))` |
| `Uniform` | `x * (1 + β · (2 · torch.rand_like(x) − 1))` |

Everything else vshift builds from `torch.nn` layers, sums, concatenations and means as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, make_config
from benchmarks.peers import OWN_PRECISION, PEERS, Work
from benchmarks.race import Epoch
from vshift.data import ImageSet
from vshift.networks.hooks import hook_of
from vshift.networks.noise import Dropout, Gaussian, Noise, Uniform
from vshift.networks.norm import BatchNorm
from vshift.train.context import build_model
from vshift.train.trial import PRECISIONS, Trial, measure


class GaussianNoise(nn.Module):
    """Multiplies by normal numbers of mean 1 and standard deviation sigma in training."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.sigma * torch.randn_like(x)) if self.training else x


class UniformNoise(nn.Module):
    """Multiplies by numbers drawn evenly from (1 − beta, 1 + beta) in training."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.beta * (2 * torch.rand_like(x) - 1)) if self.training else x


def as_plain(model: nn.Module) -> nn.Module:
    """Replace vshift's own layers in a network, in place; weights and statistics stay.

    Raises:
        TypeError: a layer that has no counterpart in the table above.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hook_of(child) is not None:
                raise TypeError("the peers put no noise into a network by its modules' names")
            if isinstance(child, BatchNorm | Noise):
                setattr(module, name, _counterpart(child))
    return model


def _counterpart(layer: BatchNorm | Noise) -> nn.Module:
    match layer:
        case BatchNorm(ghost=None, update=True, evaluate="running"):
            norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine)
            norm.load_state_dict(layer.state_dict())
            return norm.train(layer.training)
        case Dropout(unit="element"):
            return nn.Dropout(layer.rate).train(layer.training)
        case Gaussian(unit="element"):
            return GaussianNoise(math.sqrt(layer.variance)).train(layer.training)
        case Uniform(unit="element"):
            return UniformNoise(math.sqrt(3 * layer.variance)).train(layer.training)
    raise TypeError(f"the peers have no {type(layer).__name__} like {layer}")


@dataclass(frozen=True)
class Peer:
    """One of the loops with its network and images, ready to train."""

    epoch: Epoch
    precision: str


def make_peer(name: str, case: Case, images: ImageSet, precision: str | None = None) -> Peer:
    """A loop of `peers.py` on vshift's network and initial weights, from PyTorch's own layers.

    Args:
        precision: default: the one in which people write this loop.
    """
    precision = precision or OWN_PRECISION[name]
    work = Work(
        model=as_plain(build_model(make_config(case), images, 0)),
        images=images.train.images.cpu(),
        labels=images.train.labels.cpu(),
        mean=tuple(images.mean.tolist()),
        std=tuple(images.std.tolist()),
        batch=case.batch,
        device=images.train.images.device,
        precision=precision,
    )
    return Peer(PEERS[name](work), precision)


def best_precision(case: Case, images: ImageSet) -> str:
    """The precision in which the peers' network is faster here: by a trial of eager steps in
    channels_last; on a GPU, and in a tie, bf16."""
    device = images.train.images.device
    if device.type == "cuda":
        return PRECISIONS[0]
    model = as_plain(build_model(make_config(case), images, 0))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    x = torch.randn(case.batch, images.channels, images.size, images.size)
    x = x.to(memory_format=torch.channels_last)

    def step(precision: str, count: int) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(x[:count])
        output.float().logsumexp(1).mean().backward()
        optimizer.step()

    work: dict[str, Callable[[int], None]] = {f"{p} eager": partial(step, p) for p in PRECISIONS}
    count, seconds = measure(work, case.batch)
    return Trial(images=count, seconds=seconds, steps={"eager": "eager"}).faster("eager")
