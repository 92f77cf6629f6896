"""Trained networks that kinds of fault are planted in: an MLP and a convolutional one."""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from examples.patients import Batches, Dense, Net, data, fit, vectors

NETS: dict[str, type[Net]] = {"MLP": Dense, "convolutional": Net}


def inputs(net: str, seed: int) -> Batches:
    return vectors(seed) if net == "MLP" else data(seed)


@cache
def _state(net: str, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return fit(NETS[net](), inputs(net, seed), epochs=5, rate=0.05).state_dict()


def healthy(net: str, seed: int) -> tuple[Net, Batches]:
    """A trained network without a fault, in training mode."""
    model = NETS[net]()
    model.load_state_dict(_state(net, seed))
    return model, inputs(net, seed)


def built(net: str, seed: int, **noise: nn.Module) -> tuple[Net, Batches]:
    """A network with these parts, trained with them."""
    torch.manual_seed(seed)
    batches = inputs(net, seed)
    return cast(Net, fit(NETS[net](**noise), batches, epochs=5, rate=0.05)), batches
