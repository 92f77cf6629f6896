"""Which noise reaches which BN layer."""

import torch
from torch import nn

from tests.configs import make_config
from vshift.networks.build import build
from vshift.networks.noise import Dropout
from vshift.networks.norm import BatchNorm
from vshift.shift.noise_graph import noise_in_front


def found(position, **network):
    noise = {"kind": "dropout", "rate": 0.5, "position": position}
    config = make_config(network={"name": "preresnet", "depth": 8, "noise": noise, **network})
    return noise_in_front(build(config, classes=10, channels=3, size=32, seed=0))


def test_noise_before_the_last_bn_reaches_that_bn_only():
    layers = found("before_last_bn")
    assert {name for name, noise in layers.items() if noise} == {
        f"stage{s}.block1.branch.bn2" for s in (1, 2, 3)
    }
    assert len(layers) == 7


def test_noise_before_the_last_conv_reaches_the_next_blocks_through_the_addition():
    layers = found("before_last_conv")
    assert layers["stage1.block1.branch.bn1"] == []
    assert layers["stage2.block1.branch.bn1"] == ["stage1.block1.branch.noise1"]
    assert layers["head.bn1"] == [f"stage{s}.block1.branch.noise1" for s in (1, 2, 3)]
    assert layers["stage3.block1.branch.bn2"] == []


def test_noise_before_the_classifier_reaches_none():
    assert not any(found("before_classifier").values())


def test_post_activation_shortcuts():
    layers = found("before_last_bn", name="resnet")
    assert layers["stage2.block1.shortcut.bn1"] == []
    assert layers["stage2.block1.branch.bn2"] == ["stage2.block1.branch.noise1"]


def test_it_walks_what_was_built_and_not_names():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.anything, self.last = BatchNorm(4), Dropout(1.0), BatchNorm(4)

        def forward(self, x):
            y = self.anything(self.bn(x))
            return self.last(torch.cat([y[:, :2], y[:, 2:]], 1) + x)

    assert noise_in_front(Odd()) == {"bn": [], "last": ["anything"]}
