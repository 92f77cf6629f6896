"""From a block order to modules: the branch of one block, and the ways blocks are joined."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vshift.config import block
from vshift.errors import ConfigError

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


# Number of channels → the noise and the fc layer that end a network, each with its word.
Classifier = Callable[[int], list[tuple[str, nn.Module]]]


@dataclass(frozen=True)
class Pieces:
    """What every block of a network is made from.

    Attributes:
        order: the words of a block, noise filled in as `noise1`, `noise2`, …
        norm: number of channels → a normalisation layer, `bn` in the order.
        group_norm: the same for `gn`.
        noise: index in `network.noise`, from 0 → a noise module.
        bias: whether the blocks' convolutions have one.
    """

    order: block.Order
    norm: Callable[[int], nn.Module]
    group_norm: Callable[[int], nn.Module]
    noise: Callable[[int], nn.Module]
    bias: bool = False


def conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the image's size at stride 1."""
    if inputs % groups or outputs % groups:
        raise ConfigError(
            f"network.block: a conv{kernel}x{kernel} from {inputs} to {outputs} channels cannot "
            f"work in {groups} groups; let a conv1x1 come first, or change the cardinality"
        )
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def sequence(modules: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Modules in order, named by their word and a number that counts up: bn1, relu1, conv1, bn2."""
    counts: dict[str, itertools.count[int]] = {}
    named = OrderedDict(
        (f"{word}{next(counts.setdefault(word, itertools.count(1)))}", module)
        for word, module in modules
    )
    return nn.Sequential(named)


def branch(
    pieces: Pieces,
    inputs: int,
    inner: int,
    outputs: int,
    *,
    stride: int = 1,
    groups: int = 1,
    pool: bool = False,
) -> nn.Sequential:
    """One block's list of operations as modules, in the order of the words.

    Every convolution gives `inner` channels but the last, which gives `outputs`. The first one with
    a kernel above 1×1 (else the first) takes the stride; those above 1×1 work in `groups`.
    Pooling words act where `pool` is true and are left out elsewhere.
    """
    weights = [i for i, word in enumerate(pieces.order) if block.is_conv(word)]
    strided = next((i for i in weights if _kernel(pieces.order[i]) > 1), weights[0])
    modules: list[tuple[str, nn.Module]] = []
    channels = inputs
    for i, word in enumerate(pieces.order):
        if block.is_conv(word):
            wanted = outputs if i == weights[-1] else inner
            modules.append(
                (
                    word[:4] if word != "fc" else "fc",
                    _linear(word, channels, wanted, i == strided, stride, groups, pieces.bias),
                )
            )
            channels = wanted
        elif word == "bn":
            modules.append(("bn", pieces.norm(channels)))
        elif word == "gn":
            modules.append(("gn", pieces.group_norm(channels)))
        elif block.is_noise(word):
            modules.append(("noise", pieces.noise(block.noise_index(word))))
        elif word in block.POOLS:
            if pool:
                modules.append(("pool", _pool(word)))
        else:
            modules.append((word, _ACTIVATIONS[word]()))
    return sequence(modules)


def _kernel(word: str) -> int:
    return 1 if word == "fc" else block.kernel(word)


def _linear(
    word: str, inputs: int, outputs: int, strided: bool, stride: int, groups: int, bias: bool
) -> nn.Module:
    if word == "fc":
        return nn.Linear(inputs, outputs, bias=bias)
    kernel = block.kernel(word)
    return conv(
        inputs, outputs, kernel, stride if strided else 1, groups if kernel > 1 else 1, bias
    )


def _pool(word: str) -> nn.Module:
    # Rounding up lets 28-pixel images through five halvings: 28, 14, 7, 4, 2, 1.
    if word == "maxpool":
        return nn.MaxPool2d(2, ceil_mode=True)
    return nn.AvgPool2d(2, ceil_mode=True)


def split_preactivation(modules: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """A branch's leading normalisation and activation, and the rest."""
    children = list(modules.named_children())
    is_rest = [name.startswith(("conv", "noise", "pool", "fc")) for name, _ in children]
    cut = is_rest.index(True)
    return nn.Sequential(OrderedDict(children[:cut])), nn.Sequential(OrderedDict(children[cut:]))


class Residual(nn.Module):
    """exit(shortcut(z) + branch(z)) with z = entry(x); what is not given is the identity."""

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        entry: nn.Module | None = None,
        exit: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.entry = entry or nn.Identity()
        self.shortcut = shortcut or nn.Identity()
        self.branch = branch
        self.exit = exit or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        z = self.entry(x)
        return self.exit(self.shortcut(z) + self.branch(z))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """A dense block's layer: the input, with the branch's new channels behind it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], dim=1)


class GlobalPool(nn.Module):
    """[N, C, H, W] → [N, C], the mean over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def initialise(model: nn.Module) -> None:
    """Weights of convolutions from N(0, √(2/(k²·out))), of hidden fc layers from N(0, √(2/in))."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2 / fan) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, (2 / module.in_features) ** 0.5)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
