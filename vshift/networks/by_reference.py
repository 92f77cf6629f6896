"""Modules by reference: models of torchvision and timm by name, and what a user's code returns."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from vshift.config import own_code
from vshift.config.own import OwnPart
from vshift.errors import ConfigError
from vshift.text import did_you_mean

LIBRARIES = ("torchvision", "timm")


def library_model(library: str, name: str, options: dict[str, Any]) -> nn.Module:
    """A library's model without weights; nothing is downloaded.

    Raises:
        ValueError: no such library or model, or options that it does not take.
    """
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise ValueError(
                f"timm models need timm ({error}); install it with `pip install 'vshift[timm]'`"
            ) from error
        names, make = timm.list_models(), timm.create_model
        weights: dict[str, Any] = {"pretrained": False}
    else:
        from torchvision import models

        names, make, weights = models.list_models(), models.get_model, {"weights": None}
        builder = models.get_model_builder(name) if name in names else None
        if builder and "weights_backbone" in inspect.signature(builder).parameters:
            weights["weights_backbone"] = None
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"{library} has no model {name!r}{hint and '; '}{hint}")
    try:
        model: nn.Module = make(name, **weights, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{library}:{name} cannot be built: {error}") from error
    return model


def own_module(key: str, part: OwnPart, **offered: Any) -> nn.Module:
    """The module that a part's object returns, called with its `args` and what it asks for.

    Args:
        key: that names the part in the config, for messages.

    Raises:
        ConfigError: it returns no module, or raises an exception.
    """
    if isinstance(own_code.import_object(part.reference), nn.Module):
        raise ConfigError(
            f"{key}: {part.reference} is a module that exists already, and every run needs one of "
            "its own; name the class or function that makes it"
        )
    module = own_code.call(part, key.rpartition(".")[0], **offered)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{key}: {part.reference} returned {describe_type(module)}, not a torch.nn.Module"
        )
    return module


def describe_type(value: Any) -> str:
    """What a value is, in a message: `None`, `a value of type tuple`."""
    return "None" if value is None else f"a value of type {type(value).__name__}"
