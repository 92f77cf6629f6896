"""Sites: the places of a network at which train and eval statistics are compared.

The inputs of BN layers always; on request those of other norms, the outputs of activations, the
logits, and whatever module a pattern names. A site knows which dimension holds the channels, so
that one accumulator serves all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from vshift.errors import ConfigError
from vshift.networks.nearest import nearest_modules
from vshift.text import suggest

BN, ACTIVATION, LOGITS, OUTPUT = "bn", "activation", "logits", "output"
NORMS: dict[str, type[nn.Module]] = {
    BN: _BatchNorm,
    "layer_norm": nn.LayerNorm,
    "rms_norm": nn.RMSNorm,
    "group_norm": nn.GroupNorm,
    "instance_norm": _InstanceNorm,
}
_ACTIVATIONS = tuple(
    getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention"
)
# The words of `measure.sites`, each with the kinds of site that it stands for.
WORDS = {
    "bn": (BN,),
    "norms": tuple(NORMS),
    "activations": (ACTIVATION,),
    "logits": (LOGITS,),
    "all": (*NORMS, ACTIVATION, LOGITS),
}


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a network whose values are measured.

    Attributes:
        name: the module's; with `#2` after it for its second call in a forward; `logits`.
        kind: `bn`, `layer_norm`, `rms_norm`, `group_norm`, `instance_norm`, whose input is
            measured; `activation`, `logits`, `output` (of a module that a pattern names).
        channel_dim, channels: the dimension that holds the channels, and their number.
        call, calls: which call of the module in a forward, counted from 0, of how many; with one,
            every call is measured.
    """

    name: str
    kind: str
    module: nn.Module
    channel_dim: int = 1
    channels: int = 0
    call: int = 0
    calls: int = 1


def bn_sites(model: nn.Module) -> list[Site]:
    """The inputs of the BN layers that keep running statistics, in the order of registration."""
    return [
        Site(name, BN, layer, channels=layer.num_features)
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_var is not None
    ]


@torch.no_grad()
def find_sites(model: nn.Module, wanted: Sequence[str], images: Tensor) -> list[Site]:
    """The BN layers and the sites that `measure.sites` asks for, in forward order.

    Args:
        wanted: words of WORDS, and globs over module names.
        images: an input; one forward in eval mode finds the order, the calls and the shapes.

    Raises:
        ConfigError: a glob that matches no module that runs, with the nearest names.
    """
    calls = _calls(model, images)
    matched = {
        word for word in wanted for call in calls if word in WORDS or fnmatchcase(call.name, word)
    }
    modules = {call.name: call.module for call in calls}
    for word in wanted:
        if word not in matched:
            raise ConfigError(
                f"measure.sites: no module that runs is called {word!r}; {suggest(word, WORDS)}"
                f"the nearest are {nearest_modules(word, modules)}; words are {', '.join(WORDS)}"
            )

    def is_wanted(site: Site) -> bool:
        if site.kind == BN and getattr(site.module, "running_var", None) is not None:
            return True
        return any(
            site.kind in WORDS[word] if word in WORDS else fnmatchcase(site.name, word)
            for word in wanted
        )

    counts, places = Counter(call.module for call in calls), Counter[nn.Module]()
    sites = []
    for site in filter(is_wanted, calls):
        place, count = places[site.module], counts[site.module]
        places[site.module] += 1
        if site.kind != BN and place:
            site = replace(site, name=f"{site.name}#{place + 1}")
        if site.kind != BN:
            sites.append(replace(site, call=place, calls=count))
        elif not place:  # all calls of a BN layer are one site, as they share its statistics
            sites.append(site)
    return sites


def _calls(model: nn.Module, images: Tensor) -> list[Site]:
    """Every call of a module in a forward whose input or output could be measured, in order."""
    names = {module: name for name, module in model.named_modules()} | {model: LOGITS}
    calls: list[Site] = []
    at_the_end = [False]  # whether the layer that ran last has its channels in the last dimension

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kind = _kind(module) if module is not model else LOGITS
        x = args[0] if kind in NORMS and args else output
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2):
            return
        if kind in NORMS:
            dim = _channel_dim(module, x)
            at_the_end[0] = dim == x.ndim - 1
        else:
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                at_the_end[0] = isinstance(module, nn.Linear)
            dim = x.ndim - 1 if at_the_end[0] else 1
        calls.append(Site(names[module], kind, module, dim, x.shape[dim]))

    handles = [module.register_forward_hook(note) for module in names]
    training = [(module, module.training) for module in names]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            model(images)
    finally:
        for module, mode in training:
            module.training = mode
        for handle in handles:
            handle.remove()
    return calls


def _kind(module: nn.Module) -> str:
    for kind, norm in NORMS.items():
        if isinstance(module, norm):
            return kind
    return ACTIVATION if isinstance(module, _ACTIVATIONS) else OUTPUT


def _channel_dim(norm: nn.Module, x: Tensor) -> int:
    """The dimension of a norm's input that holds the channels.

    The first of the dimensions that layer norm takes together. A subclass of it for images
    (`LayerNorm2d` of torchvision and timm) takes one, the second.
    """
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return 1
    together = len(norm.normalized_shape)
    if type(norm) not in (nn.LayerNorm, nn.RMSNorm) and x.ndim == 4 and together == 1:
        return 1
    return x.ndim - together


@contextmanager
def capturing(
    model: nn.Module, sites: Iterable[Site], callback: Callable[[Site, Tensor], None]
) -> Iterator[None]:
    """Call `callback(site, values)` whenever a site is reached; removes its hooks on exit.

    Values are [N, C, …], whichever dimension of the network's tensor holds the channels.
    """
    handles = watch(model, sites, callback)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(
    model: nn.Module, sites: Iterable[Site], callback: Callable[[Site, Tensor], None]
) -> list[RemovableHandle]:
    """As `capturing`, until the handles are removed."""
    watchers = [_Watcher(site, callback) for site in sites]
    handles = []
    for watcher in watchers:
        module = watcher.site.module
        if watcher.site.kind in NORMS:
            handles.append(module.register_forward_pre_hook(watcher.before))
        else:
            handles.append(module.register_forward_hook(watcher.after))
    repeated = [watcher for watcher in watchers if watcher.site.calls > 1]
    if repeated:

        def restart(*_: Any) -> None:  # a forward may have ended in its middle
            for watcher in repeated:
                watcher.call = 0

        handles.append(model.register_forward_pre_hook(restart))
    return handles


class _Watcher:
    """The hook of one site."""

    def __init__(self, site: Site, callback: Callable[[Site, Tensor], None]) -> None:
        self.site, self.callback, self.call = site, callback, 0

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._reached(args[0])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._reached(output)

    def _reached(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):  # torch.fx traces a network with stand-ins
            return
        site = self.site
        if site.calls > 1:  # back at 0 after the last call, so that a compiled forward is the same
            call, self.call = self.call, (self.call + 1) % site.calls
            if call != site.call:
                return
        self.callback(site, x.detach().movedim(site.channel_dim, 1))
