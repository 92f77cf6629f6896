"""A network of one's own, from a callable that a config names by reference."""

from __future__ import annotations

import inspect
import re
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config import networks as config
from vshift.config import own_code
from vshift.config.norm import BatchNorm as BatchNormConfig
from vshift.config.schema import Config
from vshift.errors import ConfigError
from vshift.networks.build import ImageShape
from vshift.networks.by_reference import describe_type, library_model, own_module
from vshift.networks.norm import BatchNorm, make_norm
from vshift.text import list_names

# A subclass may compute something else.
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What a `norm` of kind batch says of layers that exist; their code says the rest.
_NORM_KEYS = {"kind", "ghost", "update_running_stats", "eval_statistics", "freeze_after"}


def own_network(
    config_: Config, network: config.OwnNetwork, images: ImageShape, outputs: int
) -> nn.Module:
    """The network that a reference gives, with the config's norm layers.

    It stays in the memory format that its code works in: channels_last, or else contiguous, for
    which it gets a hook (`needs_contiguous`).

    Args:
        outputs: numbers that it must give for each image.

    Raises:
        ConfigError: what the callable returns is no network, or none for these images.
    """
    model = _made(network, images, outputs).to("cpu")
    _check_outputs(model, network, images, outputs)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"network.name: {network.name} has no parameters to train")
    _set_norms(model, config_, network)
    _choose_memory_format(model, images)
    return model


def _made(network: config.OwnNetwork, images: ImageShape, outputs: int) -> nn.Module:
    if not network.is_of_library:
        return own_module(
            "network.name",
            network,
            **dict.fromkeys(("classes", "num_classes"), outputs),
            **dict.fromkeys(("channels", "in_channels", "in_chans"), images.channels),
            **dict.fromkeys(("size", "image_size", "img_size"), images.size),
        )
    library, _, name = network.name.partition(":")
    sizes = {"num_classes": outputs}
    sizes |= {"in_chans": images.channels} if library == "timm" else {}
    try:
        return library_model(library, name, {**sizes, **network.args})
    except ValueError as error:
        raise ConfigError(_wrong_argument(network, error) or f"network.name: {error}") from error


def _wrong_argument(network: config.OwnNetwork, error: ValueError) -> str:
    """About an argument that a library's class does not take; empty for any other error."""
    cause = error.__cause__
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause))
    if cause is None or found is None or found[2] not in network.args:
        return ""
    *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
    named = {**frame.f_globals, **frame.f_locals}.values()
    called = next((c for c in named if isinstance(c, type) and c.__name__ == found[1]), None)
    if called is None:
        return ""
    parameters = [name for name in inspect.signature(called).parameters if name != "kwargs"]
    return own_code.takes_no(network, found[2], parameters)


# ---- the forward


def _check_outputs(
    model: nn.Module, network: config.OwnNetwork, images: ImageShape, outputs: int
) -> None:
    """Refuse a network whose forward does not turn [N, C, H, W] into [N, outputs]."""
    count = 2 if outputs != 2 else 3  # so that no other dimension passes for the batch's
    batch = torch.zeros(count, images.channels, images.size, images.size)
    what = f"network.name: {network.name}"
    with own_code.running(f"{what} cannot take images {list(batch.shape)}"):
        result = _evaluated(model, batch)
    check_output(result, what, batch, outputs)


def check_output(result: Any, what: str, batch: Tensor, outputs: int) -> None:
    """Refuse what a forward made of a batch of images, unless it is a tensor [N, outputs].

    Args:
        what: begins the message.
    """
    if not isinstance(result, Tensor):
        raise ConfigError(
            f"{what} gives {describe_type(result)} in its forward, not a tensor of outputs"
        )
    given, wanted = list(result.shape), [len(batch), outputs]
    if given[:1] != wanted[:1]:
        raise ConfigError(
            f"{what} changes the batch dimension: of images {list(batch.shape)} its forward makes "
            f"{given}, not {wanted}"
        )
    if given != wanted:
        raise ConfigError(
            f"{what} gives outputs {given} for images {list(batch.shape)}; this data needs {wanted}"
        )


@torch.no_grad()
def _evaluated(model: nn.Module, batch: Tensor) -> Any:
    """The output in eval mode; modes and buffers stay as they are."""
    # A lazy module's first forward makes its tensors, which have no value to go back to.
    buffers = [(b, b.clone()) for b in model.buffers() if not nn.parameter.is_lazy(b)]
    training = [(module, module.training) for module in model.modules()]
    try:
        return model.eval()(batch)
    finally:
        for module, mode in training:
            module.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)


def _choose_memory_format(model: nn.Module, images: ImageShape) -> None:
    """Put the model into channels_last, unless its code only works on contiguous tensors.

    `x.view(len(x), -1)` after a convolution is such code.
    """
    batch = torch.zeros(2, images.channels, images.size, images.size)
    try:
        model.to(memory_format=torch.channels_last)
        _evaluated(model, batch.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # what PyTorch raises for a format
        model.to(memory_format=torch.contiguous_format)
        model.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def needs_contiguous(model: nn.Module) -> bool:
    """Whether the model's code works on contiguous tensors only."""
    return _contiguous in model._forward_pre_hooks.values()


# ---- its norm layers


def _set_norms(model: nn.Module, config_: Config, network: config.OwnNetwork) -> None:
    """Let the model's plain BN layers be ours, or what the config's norm says.

    Raises:
        ConfigError: a norm that these layers cannot become.
    """
    norm = config_.norm
    plain = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in PLAIN and module.running_mean is not None
    }
    default = BatchNormConfig(kind="batch")
    if not network.convert or not plain:
        if norm != default:
            why = "network.convert is false" if plain else "it has no plain nn.BatchNorm layer"
            raise ConfigError(
                f"norm: {network.name} keeps its own norm layers, as {why}; leave norm out"
            )
        return
    if not isinstance(norm, BatchNormConfig):
        made = {module: make_norm(norm, module.num_features) for module in plain.values()}
        for name, module in plain.items():
            model.set_submodule(name, made[module])
        return
    given = norm.model_dump()
    wrong = [k for k, v in default.model_dump().items() if k not in _NORM_KEYS and given[k] != v]
    if wrong:
        raise ConfigError(
            f"norm.{wrong[0]}: the layers of {network.name} have their own {list_names(wrong)}; "
            "leave it out, or set it in the network's code"
        )
    like = make_norm(norm, 1)
    for module in set(plain.values()):
        _convert(module, like)


def _convert(layer: nn.Module, like: nn.Module) -> None:
    """Make a plain BN layer one of ours, in place: hooks, names and values stay.

    Args:
        like: a layer of ours that has what is not of a channel.
    """
    mean = layer.running_mean
    assert isinstance(mean, Tensor)
    layer.__class__ = BatchNorm
    for key, value in vars(like).items():
        if key not in vars(layer):
            setattr(layer, key, value)
    layer.register_buffer("batch_mean", torch.zeros_like(mean), persistent=False)
    layer.register_buffer("batch_var", torch.ones_like(mean), persistent=False)
