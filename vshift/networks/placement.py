"""Where the noise of a config sits in any network: modules by pattern, positions by tracing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.errors import ConfigError
from vshift.networks.dry_run import dry_run
from vshift.networks.hooks import NoiseHook, Where, checked_shapes
from vshift.networks.nearest import nearest_modules
from vshift.networks.noise import places_over_depth
from vshift.networks.positions import find_position
from vshift.text import list_names

if TYPE_CHECKING:
    from vshift.config.noise import AnyNoise


def place_noise(
    model: nn.Module,
    noises: Sequence[AnyNoise],
    make: Callable[[AnyNoise], nn.Module],
    *,
    channels: int,
    size: int,
    positions: bool = False,
) -> None:
    """Put noise at the modules that `network.noise` names, in place.

    In a pattern `*` stands for any text, dots too. Of modules inside one another the outermost
    counts: `layer*` is `layer1` to `layer4`, once each.

    Args:
        noises: the entries of `network.noise`.
        make: an entry → a new noise module.
        channels, size: of the images that show whether every noise is called.
        positions: whether to find positions too, by tracing; False where the block order has them.

    Raises:
        ConfigError: a pattern matches no module, or one that is never called or has no tensor; a
            position that the network does not have, or that is not at a module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks = []
    for index, noise in enumerate(noises):
        section = "network.noise" if len(noises) == 1 else f"network.noise.{index}"
        targets = [
            (where, target, f"{section}.{where}")
            for where, pattern in noise.patterns
            for target in _matches(pattern, modules, f"{section}.{where}")
        ]
        targets += [
            (where, target, f"{section}.position")
            for position in (noise.positions if positions else ())
            for where, target in _found(model, position, f"{section}.position")
        ]
        if noise.over_depth and len(targets) == 1:
            raise ConfigError(
                f"{section}.over_depth: linear begins with no noise at the first module, and "
                f"{targets[0][1]} is the only one; leave it out"
            )
        if noise.over_depth:
            order = _call_order(model, modules, channels, size)
            targets.sort(key=lambda each: order.get(each[:2], 0))
        for (where, target, key), place in zip(
            targets, places_over_depth(len(targets)), strict=True
        ):
            hooks.append(NoiseHook(make(noise.at_depth(place)), where, target, key))
    for hook in hooks:
        hook.register(modules[hook.target])
    _check_calls(model, hooks, channels, size)


def _found(model: nn.Module, position: str, key: str) -> list[tuple[Where, str]]:
    try:
        return find_position(model, position)
    except ValueError as error:
        norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
        its = f" (BN layers: {list_names(norms, 3)})" if norms and position.endswith("bn") else ""
        raise ConfigError(
            f"{key}: {position} is unknown in this network: {error}; name modules with before or "
            f"after{its}, as `vshift inspect` shows them"
        ) from error


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
            f"{nearest_modules(pattern, modules)}; `vshift inspect` without this noise shows all "
            "names"
        )
    return list(found.values())


def _call_order(
    model: nn.Module, modules: Mapping[str, nn.Module], channels: int, size: int
) -> dict[tuple[Where, str], int]:
    """The moments before and after every module's first call in a forward pass, numbered."""
    order: dict[tuple[Where, str], int] = {}

    def note(where: Where, name: str) -> None:
        order.setdefault((where, name), len(order))

    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: note("before", name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: note("after", name)))
    try:
        dry_run(model, channels, size, training=True)
    finally:
        for handle in handles:
            handle.remove()
    return order


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
                with checked_shapes(hook.noise for hook in hooks):
                    dry_run(model, channels, size, training=training)
    finally:
        for handle in handles:
            handle.remove()
    for hook in waiting.values():
        raise ConfigError(
            f"{hook.key}: {hook.target} is never called in a forward pass, and noise there would "
            "do nothing; name a module that is"
        )
