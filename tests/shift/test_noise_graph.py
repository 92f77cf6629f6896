"""Which noise reaches which BN layer."""

import torch
from torch import nn
from torchvision.models import DenseNet, resnet18

from tests.configs import make_config
from vshift.config.noise import Dropout as DropoutSection
from vshift.networks.build import build
from vshift.networks.noise import Dropout, make_noise
from vshift.networks.norm import BatchNorm
from vshift.networks.placement import place_noise
from vshift.shift.noise_graph import NoiseGraph, NoisePath, noise_in_front


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


def graph_of(model, **keys):
    noise = DropoutSection(kind="dropout", rate=0.5, **keys)
    place_noise(model, [noise], make_noise, channels=3, size=32)
    return NoiseGraph(model)


def test_noise_by_pattern_in_a_network_that_adds_in_place():
    """torchvision's blocks: `out += identity`, one ReLU module called twice."""
    graph = graph_of(resnet18(num_classes=10), before="layer*.conv2")
    found = graph.noise_in_front()
    assert found["layer1.0.bn1"] == []
    assert found["layer1.0.bn2"] == ["layer1.0.conv2.noise1"]
    assert graph.paths_to("layer1.0.bn2") == [
        NoisePath("layer1.0.conv2.noise1", 0, ("layer1.0.conv2",))
    ]
    assert found["layer1.1.bn1"] == []  # the BN of the block before absorbs it
    sums = graph_of(resnet18(num_classes=10), after="layer1.*.bn2")
    assert sums.noise_in_front()["layer1.1.bn1"] == ["layer1.0.bn2.noise1"]
    assert sums.paths_to("layer1.1.bn1") is None  # a ReLU lies between


def test_noise_that_does_not_act_now_is_on_no_path():
    """Noise of another part of the run, or of strength 0, is no noise upon noise."""
    graph = graph_of(resnet18(num_classes=10), before=["layer1.*.conv2", "layer1.*.bn2"])
    assert graph.paths_to("layer1.0.bn2") is None
    first, second = (graph.modules[f"layer1.0.{name}.noise1"] for name in ("conv2", "bn2"))
    first.active = False
    model = graph.modules[""]
    assert NoiseGraph(model).paths_to("layer1.0.bn2") == [NoisePath("layer1.0.bn2.noise1")]
    assert len(NoiseGraph(model).noise_in_front()["layer1.0.bn2"]) == 2
    first.active, second.variance = True, 0.0
    assert NoiseGraph(model).paths_to("layer1.0.bn2") == [
        NoisePath("layer1.0.conv2.noise1", 0, ("layer1.0.conv2",))
    ]


def test_a_module_that_is_called_twice_has_two_noises():
    graph = graph_of(resnet18(num_classes=10), after="layer1.0.relu")
    assert graph.noises.keys() == {"layer1.0.relu.noise1"}
    assert graph.paths_to("layer1.0.bn2") == [
        NoisePath("layer1.0.relu.noise1", 0, ("layer1.0.conv2",))
    ]
    assert graph.paths_to("layer1.1.bn1") == [
        NoisePath("layer1.0.relu.noise1", 1, ("layer1.1.conv1",))
    ]


def test_concatenation_shifts_the_channels():
    graph = graph_of(DenseNet(8, (2, 2), 16, num_classes=10), after="*.conv2")
    block = "features.denseblock1"
    assert graph.paths_to(f"{block}.denselayer2.norm1") == [
        NoisePath(f"{block}.denselayer1.conv2.noise1", 0, (), 16, 8)
    ]
    assert graph.paths_to("features.transition1.norm") == [
        NoisePath(f"{block}.denselayer{i}.conv2.noise1", 0, (), 8 + 8 * i, 8) for i in (1, 2)
    ]


def test_a_bn_layer_that_is_called_twice_is_not_explained():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise, self.bn = Dropout(1.0), BatchNorm(3)

        def forward(self, x):
            return self.bn(self.bn(x) + self.noise(x))

    graph = NoiseGraph(Twice())
    assert graph.noise_in_front() == {"bn": ["noise"]}
    assert graph.paths_to("bn") is None


def test_a_sum_of_one_tensor_with_itself_has_two_paths():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise, self.bn = Dropout(1.0), BatchNorm(3)

        def forward(self, x):
            y = self.noise(x)
            return self.bn(y + y)

    assert NoiseGraph(Doubled()).paths_to("bn") == [NoisePath("noise")] * 2


def test_channels_that_cannot_be_counted_leave_a_layer_unexplained():
    class Chunks(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise, self.bn = Dropout(1.0), BatchNorm(4)

        def forward(self, x):
            one, other = x.chunk(2, dim=1)
            return self.bn(torch.cat([one, self.noise(other)], 1))

    graph = NoiseGraph(Chunks())
    assert graph.noise_in_front() == {"bn": ["noise"]}
    assert graph.paths_to("bn") is None
