"""densenet, vgg, mlp and autoencoder."""

from __future__ import annotations

from torch import nn

from vshift.config import networks as config
from vshift.networks.blocks import (
    Dense,
    LayerFactory,
    branch,
    conv,
    numbered,
    sequence,
)
from vshift.networks.build import ImageShape, family

VGG_WIDTHS = [64, 128, 256, 512, 512]


@family(config.DenseNet)
def densenet(network: config.DenseNet, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """Three dense blocks with transitions (bn relu conv1x1 avgpool) in between.

    Huang et al. 2017 (1608.06993): the stem has 2k channels, a transition keeps
    floor(compression · channels).
    """
    growth = network.growth_rate
    width = 2 * growth
    model = nn.Sequential()
    model.add_module("stem", sequence([("conv", conv(images.channels, width, 3))]))
    for i, count in enumerate(network.stages, 1):
        dense = []
        for _ in range(count):
            dense.append(Dense(branch(layers, width, 4 * growth, growth)))
            width += growth
        model.add_module(f"block{i}", numbered("layer", dense))
        if i < 3:
            compressed = max(1, int(width * network.compression))
            transition = [("bn", layers.norm(width)), ("relu", nn.ReLU())]
            transition += [("conv", conv(width, compressed, 1)), ("pool", nn.AvgPool2d(2))]
            model.add_module(f"transition{i}", sequence(transition))
            width = compressed
    model.add_module("head", layers.head(width, activate=True))
    return model


@family(config.VGG)
def vgg(network: config.VGG, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """Five stages of 64 to 512 channels, times `width`; a stage's last block pools."""
    model, channels = nn.Sequential(), images.channels
    widths = [max(1, round(width * network.width)) for width in VGG_WIDTHS]
    for i, (width, count) in enumerate(zip(widths, network.stages, strict=True), 1):
        blocks = []
        for j in range(count):
            blocks.append(branch(layers, channels, width, width, pool=j == count - 1))
            channels = width
        model.add_module(f"stage{i}", numbered("block", blocks))
    model.add_module("head", layers.head(channels))
    return model


@family(config.MLP, config.Autoencoder)
def mlp(network: config.FullyConnected, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """Hidden layers of the given widths over the flattened image.

    An autoencoder is one too: its head has as many outputs as the image has values.
    """
    model, inputs = nn.Sequential(), images.values
    stem = nn.Sequential()
    stem.add_module("flatten", nn.Flatten())
    model.add_module("stem", stem)
    for i, width in enumerate(network.widths, 1):
        model.add_module(f"layer{i}", branch(layers, inputs, width, width))
        inputs = width
    model.add_module("head", sequence(layers.classifier(inputs)))
    return model
