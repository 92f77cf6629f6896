"""A network of one's own, from a callable that a config names by reference."""

from __future__ import annotations

from typing import Any

from torch import nn

from vshift.config import networks as config
from vshift.config import own
from vshift.errors import ConfigError
from vshift.networks.build import ImageShape
from vshift.text import did_you_mean


def own_network(network: config.OwnNetwork, classes: int, images: ImageShape) -> nn.Module:
    """The network that a reference gives, for these images.

    Raises:
        ConfigError: what the callable returns is no network for them.
    """
    if any(noise.position for noise in network.noises):
        raise ConfigError(
            "network.noise.position: a network of one's own has no block order; name the modules "
            "with before or after"
        )
    sizes = {
        **dict.fromkeys(("classes", "num_classes"), classes),
        **dict.fromkeys(("channels", "in_channels", "in_chans"), images.channels),
        **dict.fromkeys(("size", "image_size", "img_size"), images.size),
    }
    model = _of_library(network, classes, images) if network.is_of_library else None
    model = own.call(network, **sizes) if model is None else model
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"network.name: {network.name} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _of_library(network: config.OwnNetwork, classes: int, images: ImageShape) -> Any:
    """A library's model without weights; nothing is downloaded."""
    library, _, name = network.name.partition(":")
    args: dict[str, Any] = {"num_classes": classes, **network.args}
    if library == "torchvision":
        from torchvision import models

        names, make = models.list_models(), models.get_model
        args = {"weights": None, **args}
    else:
        try:
            import timm
        except ImportError as error:
            raise ConfigError(
                f"network.name: {network.name} needs timm ({error}); install it with "
                "`pip install 'vshift[timm]'`"
            ) from error
        names, make = timm.list_models(), timm.create_model
        args = {"pretrained": False, "in_chans": images.channels, **args}
    if name not in names:
        hint = did_you_mean(name, names)
        raise ConfigError(f"network.name: {library} has no model {name!r}{hint and '; '}{hint}")
    try:
        return make(name, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"network.name: {network.name} cannot be built: {error}") from error
