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
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, make_config
from benchmarks.peers import PEERS, Work
from benchmarks.race import Epoch
from vshift.data import ImageSet
from vshift.networks.hooks import hook_of
from vshift.networks.noise import Dropout, Gaussian, Noise, Uniform
from vshift.networks.norm import BatchNorm
from vshift.train.context import build_model


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


def make_peer(name: str, case: Case, images: ImageSet) -> Peer:
    """A loop of `peers.py` on vshift's network and initial weights, from PyTorch's own layers."""
    work = Work(
        model=as_plain(build_model(make_config(case), images, 0)),
        images=images.train.images.cpu(),
        labels=images.train.labels.cpu(),
        mean=tuple(images.mean.tolist()),
        std=tuple(images.std.tolist()),
        batch=case.batch,
        device=images.train.images.device,
    )
    return Peer(PEERS[name](work))
