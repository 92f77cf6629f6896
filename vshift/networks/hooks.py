"""Noise that forward hooks call, so that a network's code and its state dict stay as they are.

A noise module changes what its target reads (`before`) or returns (`after`). It becomes a child of
a module that has none, the target or the first one inside it: so `model.modules()` and `.train()`
reach it, and no container that iterates over its children calls it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from vshift.errors import ConfigError
from vshift.networks.by_reference import describe_type

Where = Literal["before", "after"]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they iterate over their children


class NoiseHook:
    """A forward pre-hook (`before`) or forward hook (`after`) that calls a noise module.

    An object and not a closure, so that a deep copy of a network copies its noise too.

    Args:
        target: the module's name.
        key: of the config, for messages: `network.noise.before`.
    """

    def __init__(self, noise: nn.Module, where: Where, target: str, key: str) -> None:
        self.noise, self.where, self.target, self.key = noise, where, target, key

    @property
    def place(self) -> str:
        """`before layer1.0.bn2`."""
        return f"{self.where} {self.target}"

    def register(self, module: nn.Module) -> None:
        """Hook the noise to its target, and make it a child of a module inside."""
        if self.where == "before":
            module.register_forward_pre_hook(self, with_kwargs=True)
        else:
            module.register_forward_hook(self)
        holder = next(filter(is_layer, module.modules()), None)
        if holder is None:
            raise ConfigError(f"{self.key}: {self.target} is empty, and no noise can be put there")
        names = (f"noise{number}" for number in itertools.count(1))
        holder.add_module(next(name for name in names if not hasattr(holder, name)), self.noise)
        vars(self.noise)["noise_hook"] = self

    def __call__(self, module: nn.Module, args: tuple[Any, ...], last: Any) -> Any:
        """As PyTorch calls it: `last` is the keywords of a pre-hook, or the output."""
        if self.where == "after":
            is_several = type(last) is tuple and last  # attention returns its weights too
            return (self._noisy(last[0]), *last[1:]) if is_several else self._noisy(last)
        if args:
            return (self._noisy(args[0]), *args[1:]), last
        first = next(iter(last), "")
        return args, {**last, first: self._noisy(last.get(first))}

    def _noisy(self, value: Any) -> Any:
        if value is None or isinstance(value, list | tuple | dict):
            does = "reads" if self.where == "before" else "returns"
            raise ConfigError(
                f"{self.key}: {self.target} {does} a {type(value).__name__}, and noise needs a "
                "tensor; name a module inside it, or next to it"
            )
        return self.noise(value)


def hooked(module: nn.Module, where: Where) -> list[NoiseHook]:
    """The noise right before or after a module, in the order of the calls."""
    hooks = module._forward_pre_hooks if where == "before" else module._forward_hooks
    return [hook for hook in hooks.values() if isinstance(hook, NoiseHook) and hook.where == where]


def hook_of(noise: nn.Module) -> NoiseHook | None:
    """The hook that calls a noise module; None where a network calls it itself."""
    return vars(noise).get("noise_hook")


def is_layer(module: nn.Module) -> bool:
    """Whether a module has no children but noise that was placed there, and is no container."""
    return all(map(hook_of, module.children())) and not isinstance(module, _CONTAINERS)


@contextmanager
def checked_shapes(noises: Iterable[nn.Module]) -> Iterator[None]:
    """Refuse, in forward passes inside, noise that changes the shape of what it gets."""

    def check(noise: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given = list(inputs[0].shape) if inputs and isinstance(inputs[0], Tensor) else None
        made = list(output.shape) if isinstance(output, Tensor) else describe_type(output)
        if given is not None and made != given:
            hook: NoiseHook | None = vars(noise).get("noise_hook")
            raise ConfigError(
                f"{hook.key if hook else 'network.noise'}: {type(noise).__name__} turns a tensor "
                f"{given} into {made}; noise must return the shape that it gets"
            )

    handles = [noise.register_forward_hook(check) for noise in noises]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
