"""Positions that are found by tracing a network."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

from tests.configs import make_config
from vshift.config.noise import Dropout as DropoutSection
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.hooks import hook_of
from vshift.networks.noise import make_noise
from vshift.networks.placement import place_noise
from vshift.networks.positions import find_position
from vshift.networks.summary import summarise


def ours(position=None, **network):
    noise = {"kind": "dropout", "rate": 0.5, "position": position} if position else None
    config = make_config(network={**network, "noise": noise})
    return build(config, classes=10, channels=3, size=32, seed=0)


@pytest.mark.parametrize("position", ["before_last_bn", "before_last_conv", "before_classifier"])
@pytest.mark.parametrize(
    "network",
    [
        {"name": "preresnet", "depth": 14},
        {"name": "preresnet", "depth": 20, "bottleneck": True},
        {"name": "wrn", "depth": 16, "width": 1},
        {"name": "resnet", "depth": 14},
        {"name": "resnext", "depth": 11, "cardinality": 2, "base_width": 4},
    ],
    ids=str,
)
def test_tracing_finds_the_positions_of_the_block_order(network, position):
    """Two ways to the same places: the words of a block, and the graph of what they built."""
    rows = summarise(ours(position, **network), 3, 32)["layers"]
    by_words = {row["place"] for row in rows if "place" in row}
    traced = find_position(ours(**network), position)
    assert {f"{where} {name}" for where, name in traced} == by_words
    assert len(traced) == len(by_words)


def test_every_position_of_resnet18():
    model = torchvision.models.resnet18()
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert find_position(model, "before_last_bn") == [("before", f"{b}.bn2") for b in blocks]
    assert find_position(model, "before_last_conv") == [("before", f"{b}.conv2") for b in blocks]
    assert find_position(model, "before_pool") == [("before", "avgpool")]
    assert find_position(model, "before_classifier") == [("before", "fc")]
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(find_position(model, "before_bn")) == [("before", n) for n in sorted(norms)]
    # A block's one ReLU is called twice, so what it returns first is what conv2 reads.
    after = find_position(model, "after_bn")
    assert after[:3] == [("after", "relu"), ("before", "layer1.0.conv2"), ("after", "layer1.0.bn2")]
    assert ("after", "layer2.0.downsample.1") in after
    assert len(after) == 20


class Functions(nn.Module):
    """Activations and pooling that are function calls."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.embedding = nn.Parameter(torch.zeros(1, 4, 8, 8))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + self.embedding
        return self.fc(x.mean([2, 3]))


def test_functions_have_no_noise_but_their_neighbours_may():
    model = Functions()
    assert find_position(model, "after_bn") == [("before", "conv2"), ("after", "bn2")]
    with pytest.raises(ValueError, match="neither add nor mean is a module with this one call"):
        find_position(model, "before_pool")
    with pytest.raises(ValueError, match="no residual branch"):  # an embedding is no shortcut
        find_position(model, "before_last_bn")


def test_a_subclass_of_a_layer_is_one():
    """As timm's `Linear`, whose forward is code of its own."""

    class Linear(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    assert find_position(nn.Sequential(Linear(3, 3)), "before_classifier") == [("before", "0")]


@pytest.mark.parametrize(
    ("model", "position", "text"),
    [
        (torchvision.models.densenet121, "before_pool", "network.noise.position: before_pool is "
         "unknown in this network: neither relu nor adaptive_avg_pool2d is a module with this one "
         "call; name modules with before or after, as `vshift inspect` shows them"),
        (torchvision.models.vgg11_bn, "before_last_bn", "network.noise.position: before_last_bn is "
         "unknown in this network: no residual branch, a sum with a shortcut, has such a layer; "
         "name modules with before or after (BN layers: features.1, features.5, features.9 and 5 "
         "more), as `vshift inspect` shows them"),
        (torchvision.models.vit_b_16, "before_bn", "network.noise.position: before_bn is unknown "
         "in this network: it has no batch norm; name modules with before or after, as `vshift "
         "inspect` shows them"),
    ],
)  # fmt: skip
def test_what_a_network_does_not_have_is_refused(model, position, text):
    noise = DropoutSection(kind="dropout", rate=0.5, position=position)
    with torch.device("meta"):
        network = model()
    with pytest.raises(ConfigError) as error:
        place_noise(network, [noise], make_noise, channels=3, size=224, positions=True)
    assert str(error.value) == text


def test_positions_are_placed_beside_patterns():
    model = torchvision.models.resnet18(num_classes=10)
    noise = DropoutSection(
        kind="dropout", rate=0.5, position=["before_last_bn", "before_pool"], before="layer1.0.bn1"
    )
    place_noise(model, [noise], make_noise, channels=3, size=32, positions=True)
    places = [hook_of(m).place for m in model.modules() if hook_of(m)]
    assert len(places) == 10
    assert {"before layer1.0.bn1", "before layer1.0.bn2", "before avgpool"} <= set(places)
