"""Predicted against measured variance on whole networks, and each formula against Monte Carlo."""

import math

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.config.data import Augment
from vshift.data import load, train_stream
from vshift.networks.build import build
from vshift.networks.noise import Dropout, Gaussian, Uniform
from vshift.shift.decompose import (
    cosine,
    decompose,
    delta_a,
    delta_b,
    extra_variance,
    input_shape,
    noise_variance,
)
from vshift.shift.modes import modes
from vshift.shift.stats import pooled_moments
from vshift.train.optimizer import make_optimizer

NETS = [
    {"name": "preresnet", "depth": 8},
    {"name": "preresnet", "depth": 11, "bottleneck": True},
    {"name": "wrn", "depth": 10, "width": 1},
    {"name": "resnet", "depth": 8},
    {"name": "resnext", "depth": 11, "cardinality": 2, "base_width": 2},
    {"name": "densenet", "depth": 10, "growth_rate": 4},
    {"name": "mlp", "widths": [64, 64, 64]},
]
KINDS = ["dropout", "gaussian", "uniform"]


def images(count=8, size=32, pixels=16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, pixels, pixels, generator=generator) for _ in range(count)]


def net(network, noise, pixels=16, seed=1, batches=()):
    config = make_config(network={**network, "noise": noise})
    model = build(config, classes=10, channels=3, size=pixels, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for batch in batches:
            model(batch)  # running statistics of noisy batches, as training leaves them
    return model


def deviations(found):
    """(measured − predicted)/standard error of every layer whose prediction is exact."""
    return [abs(e.excess.value) / e.excess.error for e in found.values() if e.noises and e.exact]


@pytest.mark.parametrize("position", ["before_last_bn", "before_last_conv"])
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_predicted_equals_measured_with_random_weights(position, unit):
    """1×1, 3×3, strided, padded and grouped convolutions and fc layers, three kinds of noise."""
    data, all_of_them = images(), []
    for i, network in enumerate(NETS):
        noise = {"kind": KINDS[i % 3], "rate": 0.4, "position": position, "unit": unit}
        found = decompose(net(network, noise, batches=data[:4]), lambda: data, seed=3)
        all_of_them += deviations(found)
    assert len(all_of_them) >= 15
    # Eight batches: the standard error itself is uncertain, Student's t with 7 degrees of freedom
    # leaves |t| > 3 a chance of 2 %.
    assert sum(d > 3 for d in all_of_them) <= 0.04 * len(all_of_them) + 1
    assert max(all_of_them) < 5.5


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_equals_measured_with_trained_weights(kind):
    """At least 99 % within three standard errors, with as many batches as that claim needs."""
    noise = [
        {"kind": kind, "rate": 0.3, "position": "before_last_bn"},
        {"kind": kind, "rate": 0.2, "position": "before_classifier", "unit": "channel"},
    ]
    model, stream = trained(noise)
    found = decompose(model, lambda: (x for x, _ in stream.epoch(5)), seed=3)
    values = deviations(found)
    assert len(values) == 6
    assert max(values) < 3


def trained(noise):
    """A PreResNet-14 after 20 steps on drawn images."""
    config = make_config(
        network={"name": "preresnet", "depth": 14, "noise": noise},
        data={"name": "shapes", "train": 640, "test": 10, "batch_size": 32},
    )
    data = load(config.data, "cpu")
    model = build(config, classes=10, channels=3, size=32, seed=0)
    stream = train_stream(data, 32, Augment(crop=4, flip=True))
    optimizer = make_optimizer(model, config.optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    torch.manual_seed(0)
    for pixels, labels in stream.epoch(1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    return model, stream


def test_total_is_local_times_inherited_and_what_two_plain_passes_measure():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    data = images()
    model = net(NETS[0], noise, batches=data)
    found = decompose(model, lambda: data, seed=3)
    with modes(model, noise=False, norm="running"):
        evaluated = pooled_moments(model, lambda: data)
    torch.manual_seed(11)  # other noise: the expectation is the same
    with modes(model, noise=True, norm="batch"):
        trained_ = pooled_moments(model, lambda: data)
    for name, e in found.items():
        assert e.total.value == pytest.approx(e.local.value * e.inherited.value)
        ratio = float(trained_[name].variance.mean() / evaluated[name].variance.mean())
        assert e.total.value == pytest.approx(ratio, rel=0.02)


def test_the_papers_closed_form_is_near_the_exact_prediction():
    data = images()
    for position, rel in (("before_last_bn", 1e-3), ("before_last_conv", 0.2)):
        noise = {"kind": "dropout", "rate": 0.5, "position": position}
        found = decompose(net({"name": "resnet", "depth": 8}, noise, batches=data), lambda: data)
        for e in found.values():
            if e.noises:
                assert e.closed_form == pytest.approx(e.predicted.value, rel=rel)
            else:
                assert math.isnan(e.closed_form)


def test_a_layer_without_noise_in_front_inherits_everything():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    data = images(4)
    found = decompose(net(NETS[0], noise, batches=data), lambda: data)
    first, behind = found["stage1.block1.branch.bn1"], found["head.bn1"]
    assert first.noises == behind.noises == []
    assert first.local.value == behind.local.value == 1
    assert first.total.value == pytest.approx(1, abs=1e-5)
    assert behind.inherited.value == behind.total.value > 1.1


def test_noises_of_one_variance_make_one_local_shift():
    """Uniform and Gaussian noise with dropout's s²: the same local ratio within standard error."""
    data = images(12)
    ratios = {}
    for kind in KINDS:
        noise = {"kind": kind, "rate": 0.5, "position": "before_last_bn"}
        found = decompose(net(NETS[0], noise, batches=data), lambda: data)
        ratios[kind] = found["stage1.block1.branch.bn2"].local
    for kind in ("gaussian", "uniform"):
        a, b = ratios[kind], ratios["dropout"]
        assert abs(a.value - b.value) < 3 * math.hypot(a.error, b.error)
        assert a.value > 1.5


def test_several_noises_that_meet_in_a_sum_are_followed_but_not_exact():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_conv"}
    data = images(4)
    found = decompose(net({"name": "preresnet", "depth": 14}, noise, batches=data), lambda: data)
    one, two = found["stage1.block2.branch.bn1"], found["stage2.block1.branch.bn1"]
    assert one.exact
    assert not two.exact
    assert two.local.value == pytest.approx(two.predicted.value, rel=0.02)
    far = found["head.bn1"]  # behind the stages' projections: two linear layers
    assert far.local.value > 1.2
    assert math.isnan(far.predicted.value)


def test_cosines_are_those_of_the_layer_in_front():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    model = net(NETS[0], noise)
    found = decompose(model, lambda: images(2))
    weight = model.stage1.block1.branch.conv1.weight.double().flatten(1)
    dcos2 = (weight.sum(1) ** 2 / weight.square().sum(1)).mean().item()
    assert found["stage1.block1.branch.bn2"].dcos2 == pytest.approx(dcos2)
    assert found["stage1.block1.branch.bn2"].cos2 == pytest.approx(dcos2 / 144)
    assert math.isnan(found["head.bn1"].cos2)  # a sum is in front of it


def test_noise_whose_variance_is_unknown_leaves_its_layer_unexplained():
    model = nn.Sequential(nn.AlphaDropout(0.5), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    found = decompose(model, lambda: images(3))
    assert math.isnan(found["1"].local.value)
    assert not found["1"].exact
    assert found["1"].total.value > 0
    assert found["3"].local.value == 1


def test_pytorchs_own_modules_work():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(576, 32), nn.BatchNorm1d(32),
    )  # fmt: skip
    found = decompose(model, lambda: images(8))
    assert [e.noises for e in found.values()] == [[], ["3"], ["7"]]
    assert max(deviations(found)) < 5


def test_dropout_in_place_is_seen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8))
    plain = decompose(model, lambda: images(3))["2"]
    model[1].inplace = True
    assert decompose(model, lambda: images(3))["2"].local == plain.local
    assert plain.local.value > 1.5


def test_nothing_of_the_model_changes():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    data = images(2)
    model = net(NETS[0], noise, batches=data)
    model.stage2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    decompose(model, lambda: data)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == training
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_cannot_be_traced_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx"):
        decompose(Odd(), lambda: images(1))


def test_no_batches_are_refused():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="no batches"):
        decompose(model, list)


# The formulas, one by one.

LAYERS = {
    "none": lambda: None,
    "conv1x1": lambda: nn.Conv2d(6, 4, 1),
    "conv3x3 padded": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "conv3x3 unpadded, no bias": lambda: nn.Conv2d(6, 4, 3, bias=False),
    "conv3x3 strided": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "conv3x3 dilated": lambda: nn.Conv2d(6, 4, 3, dilation=2, padding=2),
    "conv3x3 in groups": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "conv3x3 depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", [Dropout, Gaussian, Uniform])
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_extra_variance_by_monte_carlo(layer, kind, unit):
    """E over noise of (X − X₀)² is the extra term, position by position, whatever the layer."""
    torch.manual_seed(0)
    linear = LAYERS[layer]()
    x = torch.randn(8, 6, 7, 7) + 0.7
    noise = kind(0.6, unit).train()
    predicted = extra_variance(x, noise.variance, unit, linear)
    means = []
    with torch.no_grad():
        for _ in range(400):
            change = noise(x) - x
            if linear is not None:
                change = linear(change) - linear(torch.zeros_like(x))
            means.append(change.double().square().mean((0, 2, 3)))
    drawn = torch.stack(means)
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert bool(((drawn.mean(0) - predicted).abs() < 4.5 * error).all())


@pytest.mark.parametrize("unit", ["element", "channel"])
def test_extra_variance_behind_an_fc_layer(unit):
    torch.manual_seed(0)
    linear, x = nn.Linear(9, 5), torch.randn(40, 9) + 0.5
    by_hand = 0.25 * (x.double().square() @ linear.weight.double().square().T).mean(0)
    torch.testing.assert_close(
        extra_variance(x, 0.25, unit, linear), by_hand.detach(), rtol=1e-5, atol=0
    )


def test_padding_that_repeats_noisy_values_has_no_such_formula():
    """A window that holds one value twice multiplies both by the same number."""
    conv = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match="padding_mode reflect"):
        extra_variance(torch.randn(2, 6, 5, 5), 1.0, "element", conv)


def test_dropout_on_a_half_normal_input():
    """After ReLU: train/eval = 1.163, 1.629, 2.467, 4.423 at drop .1, .3, .5, .7."""
    torch.manual_seed(0)
    x = torch.randn(2000, 500).relu()
    for rate, ratio in ((0.1, 1.163), (0.3, 1.629), (0.5, 2.467), (0.7, 4.423)):
        extra = float(extra_variance(x, rate / (1 - rate), "element", None).mean())
        variance = float(x.double().var())
        assert (variance + extra) / variance == pytest.approx(ratio, rel=3e-3)
        mean = float(x.double().mean())
        assert 1 / delta_a(rate, mean**2, variance) == pytest.approx(ratio, rel=3e-3)


def test_delta_a_is_the_retain_probability_for_a_mean_of_0():
    assert delta_a(0.3, 0.0, 2.5) == pytest.approx(0.7)


def test_delta_b_against_the_exact_identity_where_its_assumptions_hold():
    """Inputs with one mean, variance and correlation: the closed form is the identity."""
    torch.manual_seed(0)
    n, d, c, v, rho, rate = 200_000, 12, 0.8, 1.5, 0.3, 0.5
    shared, own = torch.randn(n, 1).double(), torch.randn(n, d).double()
    x = c + v**0.5 * (rho**0.5 * shared + (1 - rho) ** 0.5 * own)
    linear = nn.Linear(d, 3, bias=False).double()
    tested = (x @ linear.weight.T).var(0).detach()
    trained = tested + extra_variance(x, rate / (1 - rate), "element", linear)
    weight = linear.weight.detach()
    for row in range(3):
        dcos2 = float(weight[row].sum() ** 2 / weight[row].square().sum())
        assert delta_b(rate, c * c, v, rho, dcos2) == pytest.approx(
            float(tested[row] / trained[row]), rel=0.02
        )


def test_delta_b_tends_to_1():
    assert delta_b(1e-9, 0.5, 1.0, 0.2, 3.0) == pytest.approx(1)
    assert delta_b(0.5, 0.5, 1.0, 0.2, 1e9) == pytest.approx(1)


def test_input_shape_finds_mean_variance_and_correlation():
    torch.manual_seed(0)
    n, d, c, v, rho = 100_000, 10, 0.5, 2.0, 0.4
    x = c + v**0.5 * (rho**0.5 * torch.randn(n, 1) + (1 - rho) ** 0.5 * torch.randn(n, d))
    found = input_shape(x, nn.Linear(d, 4))
    assert found.square == pytest.approx(c * c, abs=0.02)
    assert found.variance == pytest.approx(v, rel=0.02)
    assert found.correlation == pytest.approx(rho, abs=0.02)


def test_input_shape_of_a_convolution_ignores_padding():
    torch.manual_seed(0)
    x = torch.randn(50, 4, 16, 16) + 3  # a sum that reached into zeros would look correlated
    found = input_shape(x, nn.Conv2d(4, 2, 3, padding=1))
    assert found.correlation == pytest.approx(0, abs=0.01)
    assert input_shape(x).correlation == 0


def test_input_shape_of_images_smaller_than_the_filter_takes_what_there_is():
    torch.manual_seed(0)
    found = input_shape(torch.randn(50, 4, 1, 1), nn.Conv2d(4, 2, 5, padding=2))
    assert math.isfinite(found.correlation)


def test_cosines_by_hand():
    linear = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1]]))
    found = cosine(linear)
    assert found.cos2 == pytest.approx((1 + 0) / 2)
    assert found.dcos2 == pytest.approx((4 + 0) / 2)


def test_cosine_of_random_zero_mean_filters_is_1_over_d():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 4000, 3, bias=False)
    nn.init.normal_(conv.weight)
    assert cosine(conv).dcos2 == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("module", "variance", "unit"),
    [
        (nn.Dropout(0.5), 1.0, "element"),
        (nn.Dropout2d(0.2), 0.25, "channel"),
        (Gaussian(0.3, "channel"), 0.3, "channel"),
    ],
)
def test_noise_variance_of_ours_and_pytorchs(module, variance, unit):
    assert noise_variance(module) == (pytest.approx(variance), unit)


@pytest.mark.parametrize("module", [nn.AlphaDropout(0.5), nn.Dropout(1.0), nn.ReLU()])
def test_what_is_not_multiplicative_noise_of_mean_1_is_refused(module):
    with pytest.raises(ValueError, match="multiplicative noise of mean 1"):
        noise_variance(module)
