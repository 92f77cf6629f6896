"""densenet, vgg, vit, mlp and autoencoder."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vshift.config import networks as config
from vshift.config.block import branches
from vshift.errors import ConfigError
from vshift.networks.blocks import (
    Dense,
    LayerFactory,
    Position,
    Residual,
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
    model.add_module("head", layers.head(width, "bn", "relu"))
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


@family(config.ViT)
def vit(network: config.ViT, layers: LayerFactory, images: ImageShape) -> nn.Sequential:
    """Attention between patches: the patches of an image are the pixels of a smaller one.

    Tokens are [N, width, size/patch, size/patch]: BN takes its statistics over the batch and all
    tokens (as in Yao et al. 2021, "Leveraging Batch Normalization for Vision Transformers"), layer
    and RMS norm over each token's channels. The head takes the mean over the tokens, as in Beyer et
    al. 2022 (2205.01580), so that there is no class token.
    """
    if images.size % network.patch:
        fitting = [str(side) for side in range(1, images.size + 1) if images.size % side == 0]
        raise ConfigError(
            f"network.patch: patches of {network.patch} pixels do not divide images of "
            f"{images.size}×{images.size}; choose one of {', '.join(fitting)}"
        )
    width, places = network.width, layers.places
    # Without a bias, as every position adds one.
    patches = nn.Conv2d(images.channels, width, network.patch, network.patch, bias=False)
    blocks = []
    for _ in range(network.depth):
        place, residuals = next(places), []
        for order in branches(network.order):
            own = replace(layers, order=order, places=iter([place]), heads=network.heads)
            residuals.append(Residual(branch(own, width, 4 * width, width)))
        blocks.append(numbered("residual", residuals))
    model = nn.Sequential()
    position = Position(width, images.size // network.patch)
    model.add_module("stem", sequence([("conv", patches), ("position", position)]))
    model.add_module("stage1", numbered("block", blocks))
    model.add_module("head", layers.head(width, "bn"))
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
