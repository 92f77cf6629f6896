"""From a config to a network: the registry of families, and `build`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vshift.config import networks as config
from vshift.config.noise import AnyNoise, OwnNoise
from vshift.config.schema import Config
from vshift.errors import DataError
from vshift.networks.blocks import LayerFactory, initialise
from vshift.networks.generators import outside_state, seed_generators, set_outside_state
from vshift.networks.noise import as_noise, make_noise, places_over_depth
from vshift.networks.norm import make_group_norm, make_norm
from vshift.networks.placement import place_noise


@dataclass(frozen=True)
class ImageShape:
    """Square images of `size` pixels."""

    channels: int
    size: int

    @property
    def values(self) -> int:
        return self.channels * self.size * self.size


# (the family's section of a config, what its layers are made of, the images) → the network
Builder = Callable[[Any, LayerFactory, ImageShape], nn.Sequential]
_BUILDERS: dict[type, Builder] = {}


def family(*sections: type) -> Callable[[Builder], Builder]:
    """Register a function as the builder of the networks that these config classes describe."""

    def register(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(sections, builder))
        return builder

    return register


def build(
    config_: Config, *, classes: int, channels: int, size: int, seed: int | None = None
) -> nn.Module:
    """The network that a config describes, for square images of `size` pixels.

    Args:
        seed: of the initial weights; None leaves the global random state in charge.

    Returns:
        A module from [N, channels, size, size] to logits [N, classes] on the CPU, in float32; of an
        autoencoder to pixels [N, channels·size·size]. In the memory format that it works in,
        channels_last if possible.

    Raises:
        DataError: the images are too small for the network.
        ConfigError: group sizes that do not divide a layer's channels; noise at a module that does
            not exist or is never called; a network of one's own that is none, or none for these
            images.
    """
    network, images = config_.network, ImageShape(channels, size)
    with _seeded(seed):
        if isinstance(network, config.OwnNetwork):
            from vshift.networks.own import own_network

            model = own_network(config_, network, images, classes)
        else:
            model = _of_family(config_, network, images, classes)
        by_tracing = isinstance(network, config.OwnNetwork)  # families have a block order
        make = partial(_noise, network=network, epochs=config_.epochs)
        place_noise(model, network.noises, make, channels=channels, size=size, positions=by_tracing)
    return model


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """With random numbers from this seed; None leaves the global random state in charge."""
    if seed is None:
        yield
        return
    outside = outside_state()
    with torch.random.fork_rng(devices=[]):
        try:
            seed_generators(seed)
            yield
        finally:
            set_outside_state(outside)


def _noise(entry: AnyNoise, network: config.Network, epochs: int) -> nn.Module:
    """The module of an entry of `network.noise`, which knows when it acts in a run of `epochs`."""
    section = network.noise_key(entry) if isinstance(entry, OwnNoise) else "network.noise"
    noise, acting = make_noise(entry, section), entry.epochs(epochs)
    if len(acting) < epochs:
        as_noise(noise).epochs = acting
        if isinstance(entry, OwnNoise):  # its code knows nothing of that
            noise.register_forward_hook(_identity_unless_active)
    return noise


def _identity_unless_active(noise: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return output if noise.active else inputs[0]


def _of_family(
    config_: Config, network: config.Family, images: ImageShape, classes: int
) -> nn.Module:
    """A network of ours, in channels_last."""
    from vshift.networks import others, residual  # noqa: F401 - they register their families

    norm, size = config_.norm, images.size
    halvings = network.halvings
    # At least two pixels must reach the last halving, or the last stage sees no image.
    smallest = 2 ** (halvings - 1) + 1 if halvings else 1
    if size < smallest:
        raise DataError(
            f"images of {size}×{size} pixels do not fit {network.name}, which halves them "
            f"{halvings} times: it needs at least {smallest}×{smallest}; "
            "set data.size to enlarge them"
        )
    layers = LayerFactory(
        order=network.order,
        pool_noises=network.noises_at("before_pool"),
        classifier_noises=network.noises_at("before_classifier"),
        outputs=images.values if isinstance(network, config.Autoencoder) else classes,
        norm=lambda width: make_norm(norm, width),
        group_norm=lambda width: make_group_norm(norm, width),
        noise=lambda index, place: _noise(
            network.noises[index].at_depth(place), network, config_.epochs
        ),
        places=iter(places_over_depth(sum(network.stages))),
        bias=network.bias,
    )
    model = _BUILDERS[type(network)](network, layers, images)
    initialise(model, glorot=isinstance(network, config.ViT))
    return model.to(memory_format=torch.channels_last)
