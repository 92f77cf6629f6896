"""Noise at modules of any network, by forward hooks: its code and its state dict stay as they are.

A noise module changes what its target reads (`before`) or returns (`after`). It becomes a child of
a module that has none, the target or the first one inside it: so `model.modules()` and `.train()`
reach it, and no container that iterates over its children calls it.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from vshift.errors import ConfigError
from vshift.networks.dry_run import dry_run
from vshift.text import list_names

if TYPE_CHECKING:
    from vshift.config.noise import AnyNoise

Where = Literal["before", "after"]


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
            return self._noisy(last)
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


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they iterate over their children


def place_noise(
    model: nn.Module,
    noises: Sequence[AnyNoise],
    make: Callable[[AnyNoise], nn.Module],
    *,
    channels: int,
    size: int,
) -> None:
    """Put noise at the modules that the patterns of `network.noise` name, in place.

    In a pattern `*` stands for any text, dots too. Of modules inside one another the outermost
    counts: `layer*` is `layer1` to `layer4`, once each.

    Args:
        noises: the entries of `network.noise`, each with `before` and `after`.
        make: an entry → a new noise module.
        channels, size: of the images that show whether every noise is called.

    Raises:
        ConfigError: a pattern matches no module, or one that is never called or has no tensor.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks = []
    for index, noise in enumerate(noises):
        section = "network.noise" if len(noises) == 1 else f"network.noise.{index}"
        for where, pattern in noise.patterns:
            key = f"{section}.{where}"
            for target in _matches(pattern, modules, key):
                hook = NoiseHook(make(noise), where, target, key)
                hook.register(modules[target])
                hooks.append(hook)
    _check_calls(model, hooks, channels, size)


def _matches(pattern: str, modules: Mapping[str, nn.Module], key: str) -> list[str]:
    """The names that match, the outermost of them, and of several names of a module the first."""
    found: dict[nn.Module, str] = {}
    outer = "\0"  # modules come before what is inside them
    for name, module in modules.items():
        if name and fnmatchcase(name, pattern) and not name.startswith(f"{outer}."):
            found.setdefault(module, name)
            outer = name
    if not found:
        raise ConfigError(
            f"{key}: no module is called {pattern!r}; the nearest are "
            f"{list_names(_nearest(pattern, modules))}; `vshift inspect` without this noise shows "
            "all names"
        )
    return list(found.values())


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """The three names most like a pattern: as a whole, or in the first and the last part."""

    def ends(name: str) -> str:
        parts = name.split(".")
        return f"{parts[0]}.{parts[-1]}"

    def likeness(name: str) -> float:
        pairs = ((pattern, name), (ends(pattern), ends(name)))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return heapq.nlargest(3, filter(None, names), key=likeness)


def _check_calls(model: nn.Module, hooks: Sequence[NoiseHook], channels: int, size: int) -> None:
    """Refuse noise that a forward pass, in training or eval mode, does not reach."""
    waiting = {hook.noise: hook for hook in hooks}
    handles = [
        noise.register_forward_pre_hook(lambda module, _: waiting.pop(module, None) and None)
        for noise in waiting
    ]
    try:
        for training in (True, False):
            if waiting:
                dry_run(model, channels, size, training=training)
    finally:
        for handle in handles:
            handle.remove()
    for hook in waiting.values():
        raise ConfigError(
            f"{hook.key}: {hook.target} is never called in a forward pass, and noise there would "
            "do nothing; name a module that is"
        )
