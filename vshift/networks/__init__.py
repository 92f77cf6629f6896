"""Networks from a config: `build` makes one, `summary` describes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vshift.config import networks as config
from vshift.config.schema import Config
from vshift.errors import DataError
from vshift.networks import plain, residual
from vshift.networks.blocks import Pieces, initialise
from vshift.networks.noise import Noise, make_noise
from vshift.networks.norm import BatchNorm, make_group_norm, make_norm

__all__ = ["BatchNorm", "Noise", "build"]

_CONV_FAMILIES: dict[type, Callable[..., nn.Sequential]] = {
    config.PreResNet: residual.preresnet,
    config.WRN: residual.wrn,
    config.ResNet: residual.resnet,
    config.ResNeXt: residual.resnext,
    config.DenseNet: plain.densenet,
    config.VGG: plain.vgg,
}


def build(
    config_: Config, *, classes: int, channels: int, size: int, seed: int | None = None
) -> nn.Module:
    """The network that a config describes, for square images of `size` pixels.

    Args:
        seed: of the initial weights; None leaves the global random state in charge.

    Returns:
        A module from [N, channels, size, size] to logits [N, classes] on the CPU, in float32; of an
        autoencoder to pixels [N, channels·size·size].

    Raises:
        DataError: the images are too small for the network.
        ConfigError: group sizes that do not divide a layer's channels.
    """
    network = config_.network
    _check_size(network, size)
    pixels = channels * size * size
    outputs = pixels if isinstance(network, config.Autoencoder) else classes
    pieces = Pieces(
        order=network.order,
        norm=lambda width: make_norm(config_.norm, width),
        group_norm=lambda width: make_group_norm(config_.norm, width),
        noise=lambda index: make_noise(network.noises[index]),
        bias=network.bias,
    )

    def classifier(width: int) -> list[tuple[str, nn.Module]]:
        noises = [("noise", pieces.noise(index)) for index in network.head_noises]
        return [*noises, ("fc", nn.Linear(width, outputs))]

    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if isinstance(network, config.FullyConnected):
            model = plain.mlp(network, pieces, pixels, classifier)
        else:
            model = _CONV_FAMILIES[type(network)](network, pieces, channels, classifier)
        initialise(model)
    return model


def _check_size(network: config.Network, size: int) -> None:
    """At least two pixels must reach the last halving, or the last stage sees no image."""
    smallest = 2 ** (network.halvings - 1) + 1 if network.halvings else 1
    if size < smallest:
        raise DataError(
            f"images of {size}×{size} pixels do not fit {network.name}, which halves them "
            f"{network.halvings} times: it needs at least {smallest}×{smallest}; "
            "set data.size to enlarge them"
        )
