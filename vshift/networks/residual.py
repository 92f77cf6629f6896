"""preresnet, wrn, resnet and resnext: three or four stages of residual blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from vshift.config import networks as config
from vshift.networks.blocks import (
    Classifier,
    GlobalPool,
    Pieces,
    Residual,
    branch,
    conv,
    sequence,
    split_preactivation,
)

# inputs, stage's base width, stride → a block and its number of outputs
MakeBlock = Callable[[int, int, int], tuple[nn.Module, int]]


def _stages(
    inputs: int, widths: list[int], counts: list[int], make: MakeBlock
) -> tuple[list[tuple[str, nn.Module]], int]:
    """Stages named stage1, stage2, …; all but the first halve the image in their first block."""
    stages: list[tuple[str, nn.Module]] = []
    for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
        blocks = []
        for j in range(count):
            block, inputs = make(inputs, width, 2 if i > 0 and j == 0 else 1)
            blocks.append(block)
        stages.append(
            (
                f"stage{i + 1}",
                nn.Sequential(OrderedDict((f"block{j + 1}", b) for j, b in enumerate(blocks))),
            )
        )
    return stages, inputs


def _network(
    stem: nn.Module, stages: list[tuple[str, nn.Module]], head: nn.Module
) -> nn.Sequential:
    return nn.Sequential(OrderedDict([("stem", stem), *stages, ("head", head)]))


def preresnet(
    network: config.PreResNet, pieces: Pieces, channels: int, classifier: Classifier
) -> nn.Sequential:
    """BN and ReLU first, plain 1×1 projections of the raw input where the width changes.

    He et al. 2016 (1603.05027) as in github.com/bearpaw/pytorch-classification: a stem of 16
    channels without BN; the paper's 110-layer net is depth 164 with bottlenecks there.
    """
    expansion = 4 if network.is_bottleneck else 1

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        outputs = width * expansion
        shortcut = None
        if stride > 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, 1, stride)
        return Residual(branch(pieces, inputs, width, outputs, stride=stride), shortcut), outputs

    count = (network.depth - 2) // (9 if network.is_bottleneck else 6)
    stages, outputs = _stages(16, [16, 32, 64], [count] * 3, block)
    return _network(
        sequence([("conv", conv(channels, 16, 3))]), stages, _final(pieces, outputs, classifier)
    )


def wrn(
    network: config.WRN, pieces: Pieces, channels: int, classifier: Classifier
) -> nn.Sequential:
    """A wide PreResNet whose projections read the activated input, as its authors' code does."""

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        body = branch(pieces, inputs, width, width, stride=stride)
        if inputs == width:
            return Residual(body), width
        entry, rest = split_preactivation(body)
        return Residual(rest, conv(inputs, width, 1, stride), entry), width

    widths = [16 * network.width, 32 * network.width, 64 * network.width]
    stages, outputs = _stages(16, widths, [(network.depth - 4) // 6] * 3, block)
    return _network(
        sequence([("conv", conv(channels, 16, 3))]), stages, _final(pieces, outputs, classifier)
    )


def resnet(
    network: config.ResNet, pieces: Pieces, channels: int, classifier: Classifier
) -> nn.Sequential:
    """BN and ReLU last, 1×1 projections with BN, a stem with BN."""
    expansion = 4 if network.is_bottleneck else 1

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        outputs = width * expansion
        body = branch(pieces, inputs, width, outputs, stride=stride)
        return _post(pieces, body, inputs, outputs, stride), outputs

    widths, counts = _resnet_stages(network)
    stages, outputs = _stages(widths[0], widths, counts, block)
    return _network(_stem(pieces, channels, widths[0]), stages, _head(outputs, classifier))


def _resnet_stages(network: config.ResNet) -> tuple[list[int], list[int]]:
    if network.depth in network.other_depths:
        counts = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}[network.depth]
        return [64, 128, 256, 512], counts
    return [16, 32, 64], [(network.depth - 2) // (9 if network.is_bottleneck else 6)] * 3


def resnext(
    network: config.ResNeXt, pieces: Pieces, channels: int, classifier: Classifier
) -> nn.Sequential:
    """Grouped bottlenecks of cardinality × base_width inner channels, 256 to 1024 outer ones."""

    def block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
        inner = network.cardinality * network.base_width * width // 64
        outputs = width * 4
        body = branch(pieces, inputs, inner, outputs, stride=stride, groups=network.cardinality)
        return _post(pieces, body, inputs, outputs, stride), outputs

    stages, outputs = _stages(64, [64, 128, 256], [(network.depth - 2) // 9] * 3, block)
    return _network(_stem(pieces, channels, 64), stages, _head(outputs, classifier))


def _post(pieces: Pieces, body: nn.Module, inputs: int, outputs: int, stride: int) -> nn.Module:
    shortcut = None
    if stride > 1 or inputs != outputs:
        shortcut = sequence(
            [("conv", conv(inputs, outputs, 1, stride)), ("bn", pieces.norm(outputs))]
        )
    return Residual(body, shortcut, exit=nn.ReLU())


def _stem(pieces: Pieces, channels: int, width: int) -> nn.Sequential:
    return sequence(
        [("conv", conv(channels, width, 3)), ("bn", pieces.norm(width)), ("relu", nn.ReLU())]
    )


def _final(pieces: Pieces, channels: int, classifier: Classifier) -> nn.Sequential:
    """The head behind pre-activated stages, which end without BN."""
    return sequence(
        [
            ("bn", pieces.norm(channels)),
            ("relu", nn.ReLU()),
            ("pool", GlobalPool()),
            *classifier(channels),
        ]
    )


def _head(channels: int, classifier: Classifier) -> nn.Sequential:
    return sequence([("pool", GlobalPool()), *classifier(channels)])
