"""From a block order to modules: the branch of one block, and the ways blocks are joined."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
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


@dataclass(frozen=True)
class LayerFactory:
    """The layers that blocks and the head of a network are made of.

    Attributes:
        order: the words of a block, noise filled in as `noise1`, `noise2`, …
        pool_noises, classifier_noises: which entries of `network.noise`, from 0, sit right before
            the global pooling and right before the classifier.
        outputs: of the classifier.
        norm: number of channels → a normalisation layer, `bn` in the order.
        group_norm: the same for `gn`.
        noise: index in `network.noise`, from 0, and the block's place from 0, the first, to 1, the
            last → a noise module.
        places: the places of the blocks, in the order in which their branches are built.
        bias: whether the blocks' convolutions have one.
        heads: of `attention`.
    """

    order: block.Order
    pool_noises: tuple[int, ...]
    classifier_noises: tuple[int, ...]
    outputs: int
    norm: Callable[[int], nn.Module]
    group_norm: Callable[[int], nn.Module]
    noise: Callable[[int, float], nn.Module]
    places: Iterator[float]
    bias: bool = False
    heads: int = 1

    def classifier(self, channels: int) -> list[tuple[str, nn.Module]]:
        """The noise and the fc layer that end a network, each with its word."""
        fc: tuple[str, nn.Module] = ("fc", nn.Linear(channels, self.outputs))
        return [*self._noises(self.classifier_noises), fc]

    def head(self, channels: int, *words: Literal["bn", "relu"]) -> nn.Sequential:
        """Global pooling and the classifier, after these words."""
        first = [(word, self.norm(channels) if word == "bn" else nn.ReLU()) for word in words]
        pool = [*self._noises(self.pool_noises), ("pool", GlobalPool())]
        return sequence([*first, *pool, *self.classifier(channels)])

    def _noises(self, entries: Iterable[int]) -> list[tuple[str, nn.Module]]:
        return [("noise", self.noise(index, 1.0)) for index in entries]


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


def numbered(word: str, modules: Iterable[nn.Module]) -> nn.Sequential:
    """Modules in order, named word1, word2, …"""
    return sequence((word, module) for module in modules)


def branch(
    layers: LayerFactory,
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
    place = next(layers.places)
    weights = [i for i, word in enumerate(layers.order) if block.is_conv(word)]
    kernels = {i: 1 if layers.order[i] == "fc" else block.kernel(layers.order[i]) for i in weights}
    strided = next((i for i in weights if kernels[i] > 1), min(weights, default=-1))
    modules: list[tuple[str, nn.Module]] = []
    for i, word in enumerate(layers.order):
        if block.is_conv(word):
            width = outputs if i == weights[-1] else inner
            if word == "fc":
                modules.append(("fc", nn.Linear(inputs, width, bias=layers.bias)))
            else:
                own_stride, own_groups = (
                    stride if i == strided else 1,
                    groups if kernels[i] > 1 else 1,
                )
                made = conv(inputs, width, kernels[i], own_stride, own_groups, layers.bias)
                modules.append(("conv", made))
            inputs = width
        elif word == "bn":
            modules.append(("bn", layers.norm(inputs)))
        elif word == "gn":
            modules.append(("gn", layers.group_norm(inputs)))
        elif block.is_noise(word):
            modules.append(("noise", layers.noise(block.noise_index(word), place)))
        elif word == "attention":
            modules.append(("qkv", conv(inputs, 3 * inputs, 1, bias=layers.bias)))
            modules.append((word, Attention(layers.heads)))
            modules.append(("proj", conv(inputs, inputs, 1, bias=layers.bias)))
        elif word not in block.POOLS:
            modules.append((word, _ACTIVATIONS[word]()))
        elif pool:
            # Rounding up lets 28-pixel images through five halvings: 28, 14, 7, 4, 2, 1.
            kind = nn.MaxPool2d if word == "maxpool" else nn.AvgPool2d
            modules.append(("pool", kind(2, ceil_mode=True)))
    return sequence(modules)


def split_preactivation(modules: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """A branch's leading normalisation and activation, and the rest."""
    children = list(modules.named_children())
    is_rest = [name.startswith(("conv", "noise", "pool", "fc")) for name, _ in children]
    cut = is_rest.index(True)
    return nn.Sequential(OrderedDict(children[:cut])), nn.Sequential(OrderedDict(children[cut:]))


class Attention(nn.Module):
    """Scaled dot-product attention between the pixels of an image, which are tokens.

    Vaswani et al. 2017 (1706.03762), section 3.2: softmax(q·kᵀ/√d)·v in each head.

    Shapes: [N, 3C, H, W], which is queries, keys and values of C channels each, one head after the
    other → [N, C, H, W] in channels_last.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.unflatten(x.flatten(2), 1, (3, self.heads, -1)).transpose(3, 4)
        q, k, v = parts.unbind(1)  # each [N, heads, H·W, C/heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        tokens = mixed.transpose(1, 2).flatten(2)
        return torch.unflatten(tokens.transpose(1, 2), 2, x.shape[2:])


class Position(nn.Module):
    """Adds a learned vector to every token of an image [N, C, H, W]."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, side, side))
        nn.init.normal_(self.weight, 0.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


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
    """A dense block's layer: the input, followed by the branch's new channels."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], dim=1)


class GlobalPool(nn.Module):
    """[N, C, H, W] → [N, C], the mean over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def initialise(model: nn.Module, glorot: bool = False) -> None:
    """Draw weights: of convolutions from N(0, √(2/(k²·out))), of fc layers from N(0, √(2/in)).

    Args:
        glorot: of convolutions from U(−a, a), a = √(6/(k²·in + k²·out)), as transformers begin.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and glorot:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2 / fan) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, (2 / module.in_features) ** 0.5)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
