"""preresnet, wrn, resnet and resnext: three or four stages of residual blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vshift.config import networks as config
from vshift.networks.blocks import (
    LayerFactory,
    Residual,
    branch,
    conv,
    numbered,
    sequence,
    split_preactivation,
)
from vshift.networks.build import ImageShape, family

# inputs, stage's base width, stride → a block and its number of outputs
MakeBlock = Callable[[int, int, int], tuple[nn.Module, int]]


def _staged(
    stem: nn.Module, inputs: int, widths: list[int], counts: tuple[int, ...], make: MakeBlock
) -> tuple[nn.Sequential, int]:
    """A stem and stages named stage1, stage2, …, and the number of their output channels.

    All stages but the first halve the image in their first block.
    """
    model = nn.Sequential()
    model.add_module("stem", stem)
    for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
        blocks = []
        for j in range(count):
            block, inputs = make(inputs, width, 2 if i > 0 and j == 0 else 1)
            blocks.append(block)
        model.add_module(f"stage{i + 1}", numbered("block", blocks))
    return model, inputs


@family(config.PreResNet)
def preresnet(network: config.PreResNet, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """BN and ReLU first, plain 1×1 projections of the raw input where the width changes.

    He et al. 2016 (1603.05027) as in github.com/bearpaw/pytorch-classification: a stem of 16
    channels without BN; the paper's 110-layer net is depth 164 with bottlenecks there.
    """
    expansion = 4 if network.is_bottleneck else 1

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        outputs = width * expansion
        projects = stride > 1 or inputs != outputs
        shortcut = conv(inputs, outputs, 1, stride) if projects else None
        return Residual(branch(layers, inputs, width, outputs, stride=stride), shortcut), outputs

    stem = sequence([("conv", conv(images.channels, 16, 3))])
    model, outputs = _staged(stem, 16, [16, 32, 64], network.stages, block)
    model.add_module("head", layers.head(outputs, "bn", "relu"))
    return model


@family(config.WRN)
def wrn(network: config.WRN, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """A wide PreResNet whose projections read the activated input, as its authors' code does."""

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        body = branch(layers, inputs, width, width, stride=stride)
        if inputs == width:
            return Residual(body), width
        entry, rest = split_preactivation(body)
        return Residual(rest, conv(inputs, width, 1, stride), entry), width

    widths = [16 * network.width, 32 * network.width, 64 * network.width]
    stem = sequence([("conv", conv(images.channels, 16, 3))])
    model, outputs = _staged(stem, 16, widths, network.stages, block)
    model.add_module("head", layers.head(outputs, "bn", "relu"))
    return model


@family(config.ResNet)
def resnet(network: config.ResNet, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """BN and ReLU last, 1×1 projections with BN, a stem with BN."""
    expansion = 4 if network.is_bottleneck else 1

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        outputs = width * expansion
        body = branch(layers, inputs, width, outputs, stride=stride)
        return _postactivated(layers, body, inputs, outputs, stride), outputs

    widths = [64, 128, 256, 512] if network.depth in network.other_depths else [16, 32, 64]
    stem = _normalized_stem(layers, images, widths[0])
    model, outputs = _staged(stem, widths[0], widths, network.stages, block)
    model.add_module("head", layers.head(outputs))
    return model


@family(config.ResNeXt)
def resnext(network: config.ResNeXt, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """Grouped bottlenecks of cardinality × base_width inner channels, 256 to 1024 outer ones."""

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        inner = network.cardinality * network.base_width * width // 64
        outputs = width * 4
        body = branch(layers, inputs, inner, outputs, stride=stride, groups=network.cardinality)
        return _postactivated(layers, body, inputs, outputs, stride), outputs

    stem = _normalized_stem(layers, images, 64)
    model, outputs = _staged(stem, 64, [64, 128, 256], network.stages, block)
    model.add_module("head", layers.head(outputs))
    return model


def _postactivated(
    layers: LayerFactory, body: nn.Module, inputs: int, outputs: int, stride: int
) -> nn.Module:
    shortcut = None
    if stride > 1 or inputs != outputs:
        projection = conv(inputs, outputs, 1, stride)
        shortcut = sequence([("conv", projection), ("bn", layers.norm(outputs))])
    return Residual(body, shortcut, exit=nn.ReLU())


def _normalized_stem(layers: LayerFactory, images: ImageShape, width: int) -> nn.Sequential:
    stem = conv(images.channels, width, 3)
    return sequence([("conv", stem), ("bn", layers.norm(width)), ("relu", nn.ReLU())])
