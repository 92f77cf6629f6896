"""densenet, vgg, mlp and autoencoder."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from vshift.config import networks as config
from vshift.networks.blocks import Classifier, Dense, GlobalPool, Pieces, branch, conv, sequence

VGG_WIDTHS = [64, 128, 256, 512, 512]
VGG_COUNTS = {
    11: [1, 1, 2, 2, 2],
    13: [2, 2, 2, 2, 2],
    16: [2, 2, 3, 3, 3],
    19: [2, 2, 4, 4, 4],
}


def densenet(
    network: config.DenseNet, pieces: Pieces, channels: int, classifier: Classifier
) -> nn.Sequential:
    """Three dense blocks with transitions (bn relu conv1x1 avgpool) in between.

    Huang et al. 2017 (1608.06993): the stem has 2k channels, a transition keeps
    floor(compression · channels).
    """
    growth = network.growth_rate
    width = 2 * growth
    parts: list[tuple[str, nn.Module]] = [("stem", sequence([("conv", conv(channels, width, 3))]))]
    for i in range(3):
        layers: list[nn.Module] = []
        for _ in range((network.depth - 4) // (6 if network.bottleneck else 3)):
            layers.append(Dense(branch(pieces, width, 4 * growth, growth)))
            width += growth
        named = OrderedDict((f"layer{j + 1}", layer) for j, layer in enumerate(layers))
        parts.append((f"block{i + 1}", nn.Sequential(named)))
        if i < 2:
            kept = max(1, int(width * network.compression))
            parts.append((f"transition{i + 1}", _transition(pieces, width, kept)))
            width = kept
    head = [("bn", pieces.norm(width)), ("relu", nn.ReLU()), ("pool", GlobalPool())]
    parts.append(("head", sequence([*head, *classifier(width)])))
    return nn.Sequential(OrderedDict(parts))


def _transition(pieces: Pieces, inputs: int, outputs: int) -> nn.Sequential:
    return sequence(
        [
            ("bn", pieces.norm(inputs)),
            ("relu", nn.ReLU()),
            ("conv", conv(inputs, outputs, 1)),
            ("pool", nn.AvgPool2d(2)),
        ]
    )


def vgg(
    network: config.VGG, pieces: Pieces, channels: int, classifier: Classifier
) -> nn.Sequential:
    """Five stages of 64 to 512 channels, times `width`; a stage's last block pools."""
    parts: list[tuple[str, nn.Module]] = []
    widths = [max(1, round(width * network.width)) for width in VGG_WIDTHS]
    for i, (width, count) in enumerate(zip(widths, VGG_COUNTS[network.depth], strict=True)):
        blocks: list[nn.Module] = []
        for j in range(count):
            blocks.append(branch(pieces, channels, width, width, pool=j == count - 1))
            channels = width
        named = OrderedDict((f"block{j + 1}", block) for j, block in enumerate(blocks))
        parts.append((f"stage{i + 1}", nn.Sequential(named)))
    head = sequence([("pool", GlobalPool()), *classifier(channels)])
    return nn.Sequential(OrderedDict([*parts, ("head", head)]))


def mlp(
    network: config.FullyConnected, pieces: Pieces, inputs: int, classifier: Classifier
) -> nn.Sequential:
    """Hidden layers of the given widths over the flattened image; `inputs` counts its values.

    An autoencoder is one too: its head ends in as many values.
    """
    parts: list[tuple[str, nn.Module]] = [
        ("stem", nn.Sequential(OrderedDict(flatten=nn.Flatten())))
    ]
    for i, width in enumerate(network.widths):
        parts.append((f"layer{i + 1}", branch(pieces, inputs, width, width)))
        inputs = width
    head = sequence([*classifier(inputs)])
    return nn.Sequential(OrderedDict([*parts, ("head", head)]))
