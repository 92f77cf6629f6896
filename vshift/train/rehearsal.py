"""Code of one's own, tried before anything of a run is written."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from vshift.config.networks import OwnNetwork
from vshift.config.noise import OwnNoise
from vshift.config.norm import OwnNorm
from vshift.config.own import own_parts
from vshift.config.own_code import at_fault, running
from vshift.errors import ConfigError
from vshift.networks.by_reference import describe_type
from vshift.networks.hooks import checked_shapes
from vshift.networks.own import check_output
from vshift.shift.modes import noise_modules
from vshift.train.context import TrainingContext
from vshift.train.loop import TrainStep

_OF_FORWARD = (OwnNetwork, OwnNoise, OwnNorm)


def rehearse(context: TrainingContext) -> None:
    """Try a step on a few images, with a context for nothing else, if there is code of one's own.

    Raises:
        ConfigError: what the code does wrong.
    """
    parts = own_parts(context.config)
    if not parts:
        return
    images, labels = (batch[:8] for batch in next(context.stream.epoch(0)))
    network = context.config.network
    of_forward = [part for part in parts.values() if isinstance(part, _OF_FORWARD)]

    def what(error: BaseException) -> str:
        guilty = at_fault(parts.values(), error) or of_forward or parts.values()
        names = ", ".join(dict.fromkeys(part.reference for part in guilty))
        return f"{names}: a first step of training fails"

    own_noise = any(isinstance(part, OwnNoise) for part in of_forward)
    noise = noise_modules(context.model).values()
    context.model.train()
    with running(what):
        with context.autocast(), checked_shapes(noise if own_noise else ()):
            output = context.model(images)
        if isinstance(network, OwnNetwork):
            what_it_does = f"network.name: in training {network.name}"
            check_output(output, what_it_does, images, context.images.outputs)
        TrainStep(context)(images, labels)
    _check_storable("network.name", context.model.state_dict())
    _check_storable("optimizer.name", context.optimizer.state_dict())


def _check_storable(key: str, state: dict[str, Any]) -> None:
    """Refuse a state dict with anything that a checkpoint could not be read with again.

    Args:
        key: of the config, whose state it is.
    """
    for name, value in state.items():
        file = io.BytesIO()
        try:
            if not isinstance(value, Tensor):
                torch.save(value, file)
                file.seek(0)
                torch.load(file, weights_only=True)
        except Exception as error:  # pickling raises many kinds
            raise ConfigError(
                f"{key}: {name} in its state dict is {describe_type(value)}, which a "
                "checkpoint cannot hold; use tensors, numbers, text, lists and dicts of them"
            ) from error
