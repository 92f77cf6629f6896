"""Counts of every named net, and block orders against modules built by hand."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.configs import make_config
from vshift.config.networks import Family
from vshift.errors import ConfigError, DataError
from vshift.networks.blocks import Residual
from vshift.networks.build import _BUILDERS, build
from vshift.networks.summary import summarise


def make(classes=10, channels=3, size=32, norm=None, seed=0, **network):
    config = make_config(network=network, **({"norm": norm} if norm else {}))
    return build(config, classes=classes, channels=channels, size=size, seed=seed)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_every_family_of_the_config_has_a_builder():
    make(name="mlp", widths=[4])  # which imports the builders
    assert set(get_args(Family)) == set(_BUILDERS)


# name, keys, parameters (10 classes), BN layers, forward MACs in millions of one 32×32 image
COUNTS = [
    ("preresnet", {"depth": 20}, 272_282, 19, 41),
    ("preresnet", {"depth": 110}, 1_730_522, 109, 253),
    ("preresnet", {"depth": 164}, 1_703_258, 163, 248),
    ("wrn", {"depth": 28, "width": 10}, 36_479_194, 25, 5243),
    ("resnext", {"depth": 29, "cardinality": 8, "base_width": 64}, 34_426_698, 31, 5387),
    ("densenet", {"depth": 100, "growth_rate": 12}, 769_162, 99, 288),
    ("resnet", {"depth": 18}, 11_173_962, 20, 555),
    ("resnet", {"depth": 20}, 272_474, 21, 41),
    ("resnet", {"depth": 110}, 1_730_714, 111, 253),
    ("vgg", {"depth": 11}, 9_228_362, 8, 153),
    ("vgg", {"depth": 16}, 14_724_042, 13, 313),
    ("mlp", {"widths": [512, 512]}, 1_842_186, 2, 2),
    # A block has 12C² + 13C parameters; with 64 tokens the attention takes 2·64²·C of the MACs.
    ("vit", {"depth": 6, "width": 128}, 1_205_514, 13, 82),
]


@pytest.mark.parametrize(("name", "keys", "count", "bn", "macs"), COUNTS)
def test_counts_of_named_nets(name, keys, count, bn, macs):
    found = summarise(make(name=name, **keys), channels=3, size=32)
    assert found["parameters"] == count
    assert found["bn_layers"] == bn
    assert round(found["macs"] / 1e6) == macs


@pytest.mark.parametrize(
    ("name", "keys", "millions"),
    [
        ("preresnet", {"depth": 164}, 1.73),
        ("wrn", {}, 36.54),
        ("resnext", {}, 34.52),
        ("densenet", {}, 0.80),
    ],
)
def test_counts_with_100_classes_are_the_papers(name, keys, millions):
    count = parameters(make(name=name, classes=100, **keys)) / 1e6
    # Section 4 rounds 1.7265 to 1.77 for PreResNet; every other number agrees to two decimals.
    assert count == pytest.approx(millions, abs=0.0051)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_basic_preresnet_has_a_bn_for_each_convolution(depth):
    found = summarise(make(name="preresnet", depth=depth), channels=3, size=32)
    assert found["bn_layers"] == depth - 1


SMALL = [
    {"name": "preresnet", "depth": 8},
    {"name": "preresnet", "depth": 11, "bottleneck": True},
    {"name": "wrn", "depth": 10, "width": 1},
    {"name": "resnet", "depth": 8},
    {"name": "resnet", "depth": 18},
    {"name": "resnext", "depth": 11, "cardinality": 4, "base_width": 4},
    {"name": "densenet", "depth": 10, "growth_rate": 4},
    {"name": "densenet", "depth": 7, "growth_rate": 4, "bottleneck": False},
    {"name": "vgg", "depth": 11},
    {"name": "mlp", "widths": [32, 16]},
    {"name": "vit", "depth": 2, "width": 16, "heads": 2},
]


@pytest.mark.parametrize("network", SMALL, ids=str)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 100), (3, 64, 10)])
def test_every_family_takes_1_or_3_channels_and_28_to_64_pixels(network, channels, size, classes):
    model = make(classes=classes, channels=channels, size=size, **network)
    logits = model(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, classes)


@pytest.mark.parametrize("network", SMALL, ids=str)
@pytest.mark.parametrize("norm", [{"kind": "group", "groups": 1}, {"kind": "none"}], ids=str)
def test_every_family_works_without_batch_norm(network, norm):
    model = make(norm=norm, **network)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def hand_preresnet8(x, w, noise=lambda x, where: x):
    """PreResNet-8 in eval mode from a state dict, written down without vshift's modules."""

    def bn(x, name):
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.conv2d(x, w["stem.conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        at = f"stage{stage}.block1"
        stride = 1 if stage == 1 else 2
        y = F.relu(bn(x, f"{at}.branch.bn1"))
        y = F.conv2d(y, w[f"{at}.branch.conv1.weight"], stride=stride, padding=1)
        y = F.relu(bn(noise(y, at), f"{at}.branch.bn2"))
        y = F.conv2d(y, w[f"{at}.branch.conv2.weight"], padding=1)
        if stage > 1:
            x = F.conv2d(x, w[f"{at}.shortcut.weight"], stride=2)
        x = x + y
    x = F.relu(bn(x, "head.bn1")).mean((2, 3))
    return F.linear(x, w["head.fc1.weight"], w["head.fc1.bias"])


def randomised(model):
    """Weights and statistics that no two layers share."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.1)
    return model


def test_default_order_of_preresnet_against_a_hand_built_net():
    model = randomised(make(name="preresnet", depth=8)).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), hand_preresnet8(x, model.state_dict()))


def test_noise_sits_where_the_position_says():
    """With a marked noise the net equals a hand-built one with it between conv1 and bn2."""
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    model = randomised(make(name="preresnet", depth=8, noise=noise)).double().eval()
    for name, module in model.named_modules():
        if name.endswith("noise1"):
            module.forward = lambda x: x * 1.5 + 0.25
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = hand_preresnet8(x, model.state_dict(), noise=lambda y, at: y * 1.5 + 0.25)
    torch.testing.assert_close(model(x), expected)


def test_a_written_block_order_against_a_hand_built_branch():
    order = "relu bn noise conv3x3 relu bn noise conv1x1"
    noise = {"kind": "dropout", "rate": 0.5}
    model = make(name="preresnet", depth=8, block=order, noise=noise)
    branch = model.stage2.block1.branch
    by_hand = nn.Sequential(
        nn.ReLU(), nn.BatchNorm2d(16), nn.Identity(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.ReLU(), nn.BatchNorm2d(32), nn.Identity(),
        nn.Conv2d(32, 32, 1, bias=False),
    )  # fmt: skip
    randomised(branch)
    by_hand.load_state_dict(
        dict(zip(by_hand.state_dict(), branch.state_dict().values(), strict=True))
    )
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(branch.eval()(x), by_hand.eval()(x))


def test_bottlenecks_widths_and_strides():
    model = make(name="preresnet", depth=164)
    branch = model.stage2.block1.branch
    shapes = [tuple(branch.get_submodule(f"conv{i}").weight.shape) for i in (1, 2, 3)]
    assert shapes == [(32, 64, 1, 1), (32, 32, 3, 3), (128, 32, 1, 1)]
    assert [branch.get_submodule(f"conv{i}").stride[0] for i in (1, 2, 3)] == [1, 2, 1]


def test_resnext_groups_its_3x3_convolutions():
    branch = make(name="resnext", depth=29).stage1.block1.branch
    assert [branch.get_submodule(f"conv{i}").groups for i in (1, 2, 3)] == [1, 8, 1]
    assert branch.conv2.in_channels == 512


def test_wrn_projects_the_activated_input():
    model = make(name="wrn", depth=10, width=2)
    block = model.stage1.block1
    assert [name for name, _ in block.entry.named_children()] == ["bn1", "relu1"]
    assert isinstance(block.shortcut, nn.Conv2d)
    x = torch.randn(2, 16, 8, 8)
    model.eval()
    z = block.entry(x)
    torch.testing.assert_close(block(x), block.shortcut(z) + block.branch(z))


def test_wrn_shares_no_noise_with_its_shortcut():
    """Noise in front of the first convolution belongs to the branch alone."""
    noise = {"kind": "dropout", "rate": 0.5}
    block = "relu bn noise conv3x3 relu bn conv3x3"
    model = make(name="wrn", depth=10, width=2, block=block, noise=noise)
    entry = model.stage1.block1.entry
    assert [name for name, _ in entry.named_children()] == ["relu1", "bn1"]


def test_vgg_pools_in_the_last_block_of_a_stage():
    model = make(name="vgg", depth=16, block="conv3x3 relu bn avgpool")
    last = [name for name, _ in model.stage3.block3.named_children()]
    first = [name for name, _ in model.stage3.block1.named_children()]
    assert last == ["conv1", "relu1", "bn1", "pool1"]
    assert first == ["conv1", "relu1", "bn1"]
    assert isinstance(model.stage3.block3.pool1, nn.AvgPool2d)


def test_noise_before_the_classifier():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_classifier"}
    for network in SMALL:
        head = [n for n, _ in make(noise=noise, **network).head.named_children()]
        assert head[-2:] == ["noise1", "fc1"]


def test_noise_before_the_pool():
    noise = {"kind": "dropout", "rate": 0.5, "position": ["before_pool", "before_classifier"]}
    for network in SMALL:
        if network["name"] not in ("mlp", "autoencoder"):
            head = [n for n, _ in make(noise=noise, **network).head.named_children()]
            assert head[-4:] == ["noise1", "pool1", "noise2", "fc1"]


def test_noise_before_the_pool_is_weaker_than_before_the_classifier():
    """s²·Σf²/P² against s²·(Σf/P)², of a feature map of P pixels after ReLU (Kim et al. 2023)."""
    torch.manual_seed(0)
    features = torch.randn(1, 6, 4, 4).relu()
    drawn = {}
    for position in ("before_pool", "before_classifier"):
        noise = {"kind": "dropout", "rate": 0.5, "position": position}
        head = make(name="resnet", depth=8, noise=noise).head[:-1].train()
        drawn[position] = torch.stack([head(features)[0] for _ in range(4000)]).var(0)
    before_pool = features.square().sum((2, 3))[0] / 16**2
    before_classifier = features.mean((2, 3))[0].square()
    torch.testing.assert_close(drawn["before_pool"], before_pool, rtol=0.15, atol=0)
    torch.testing.assert_close(drawn["before_classifier"], before_classifier, rtol=0.15, atol=0)
    assert bool((before_pool < before_classifier).all())


def test_several_noises_and_positions():
    noise = [
        {"kind": "dropout", "rate": 0.5, "position": ["before_last_bn", "before_classifier"]},
        {"kind": "gaussian", "sigma": 0.5, "position": "before_last_conv"},
    ]
    model = make(name="preresnet", depth=8, noise=noise)
    branch = model.stage1.block1.branch
    assert type(branch.noise1).__name__ == "Dropout"
    assert type(branch.noise2).__name__ == "Gaussian"
    assert branch.noise2.variance == 0.25
    assert type(model.head.noise1).__name__ == "Dropout"


def test_convolutions_have_no_bias_unless_asked():
    assert all(
        m.bias is None
        for m in make(name="preresnet", depth=8).modules()
        if isinstance(m, nn.Conv2d)
    )
    branch = make(name="preresnet", depth=8, bias=True).stage1.block1.branch
    assert branch.conv1.bias is not None


def test_initial_gamma_and_beta():
    norm = {"kind": "batch", "scale_init": 1.5, "shift_init": -0.5}
    for module in make(norm=norm, name="preresnet", depth=8).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert bool((module.weight == 1.5).all())
            assert bool((module.bias == -0.5).all())


def test_initial_weights_have_the_recipes_spread_and_come_from_the_seed():
    a, b = make(name="wrn", depth=10, width=4), make(name="wrn", depth=10, width=4)
    conv = a.stage3.block1.branch.conv2.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    other = make(name="wrn", depth=10, width=4, seed=1)
    assert not torch.equal(conv, other.stage3.block1.branch.conv2.weight)


def test_building_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    make(name="preresnet", depth=8)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_group_size_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="5 groups do not divide a layer of 16 channels"):
        make(name="preresnet", depth=8, norm={"kind": "group", "groups": 5})


def test_a_grouped_convolution_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="conv3x3 from 64 to 15 channels cannot work in 3 groups"):
        make(
            name="resnext",
            depth=11,
            cardinality=3,
            base_width=5,
            block="conv3x3 bn relu conv1x1 bn",
        )


@pytest.mark.parametrize(("network", "size"), [("vgg", 16), ("resnet", 4), ("preresnet", 2)])
def test_images_too_small_for_the_network_are_refused(network, size):
    depth = {"vgg": 11, "resnet": 18, "preresnet": 8}[network]
    with pytest.raises(DataError, match=f"images of {size}×{size} pixels do not fit {network}"):
        make(name=network, depth=depth, size=size)


def test_summary_lists_layers_in_forward_order():
    found = summarise(make(name="preresnet", depth=8), channels=3, size=32)
    names = [layer["name"] for layer in found["layers"]]
    assert names[0] == "stem.conv1"
    assert names[-1] == "head.fc1"
    assert names.index("stage2.block1.shortcut") < names.index("stage2.block1.branch.bn1")
    shapes = {layer["name"]: layer["output_shape"] for layer in found["layers"]}
    assert shapes["stage3.block1"] == [64, 8, 8]
    assert shapes["head.fc1"] == [10]


def test_summary_leaves_the_model_as_it_was():
    model = make(name="preresnet", depth=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    summarise(model, 3, 32)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_residual_without_shortcut_adds_its_input():
    block = Residual(nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block(x), x + block.branch(x))
