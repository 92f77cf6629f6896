"""Predicted against measured variance on whole networks, and the split into local and inherited."""

import math

import pytest
import torch
from torch import nn
from vshift.shift.explain import explain
from vshift.shift.moments import pooled_moments

from tests.configs import make_config
from vshift.data import load, train_stream
from vshift.networks import build
from vshift.shift.modes import modes
from vshift.train.step import EagerStep, MetricAccumulator, make_optimizer

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


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count=8, size=64, pixels=16):
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
        found = explain(net(network, noise, batches=data[:4]), lambda: data, seed=3)
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
    found = explain(model, lambda: (x for x, _ in stream.epoch(5)), seed=3)
    values = deviations(found)
    assert len(values) == 6
    assert max(values) < 3


def trained(noise):
    """A PreResNet-14 after 40 steps on drawn images."""
    config = make_config(
        network={"name": "preresnet", "depth": 14, "noise": noise},
        data={"name": "shapes", "train": 1280, "test": 10, "batch_size": 64},
    )
    data = load(config.data, "cpu")
    model = build(config, classes=10, channels=3, size=32, seed=0)
    stream = train_stream(data, 32, 4, True)
    step = EagerStep(
        model, make_optimizer(model, config.optimizer), "float32", MetricAccumulator("cpu")
    )
    torch.manual_seed(0)
    for pixels, labels in stream.epoch(1):
        step(pixels, labels, 0.05)
    return model, stream


def test_total_is_local_times_inherited_and_what_two_plain_passes_measure():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    data = images()
    model = net(NETS[0], noise, batches=data)
    found = explain(model, lambda: data, seed=3)
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
        found = explain(net({"name": "resnet", "depth": 8}, noise, batches=data), lambda: data)
        for e in found.values():
            if e.noises:
                assert e.closed_form == pytest.approx(e.predicted.value, rel=rel)
            else:
                assert math.isnan(e.closed_form)


def test_a_layer_without_noise_in_front_inherits_everything():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    data = images(4)
    found = explain(net(NETS[0], noise, batches=data), lambda: data)
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
        found = explain(net(NETS[0], noise, batches=data), lambda: data)
        ratios[kind] = found["stage1.block1.branch.bn2"].local
    for kind in ("gaussian", "uniform"):
        a, b = ratios[kind], ratios["dropout"]
        assert abs(a.value - b.value) < 3 * math.hypot(a.error, b.error)
        assert a.value > 1.5


def test_several_noises_that_meet_in_a_sum_are_followed_but_not_exact():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_conv"}
    data = images(4)
    found = explain(net({"name": "preresnet", "depth": 14}, noise, batches=data), lambda: data)
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
    found = explain(model, lambda: images(2))
    weight = model.stage1.block1.branch.conv1.weight.double().flatten(1)
    dcos2 = (weight.sum(1) ** 2 / weight.square().sum(1)).mean().item()
    assert found["stage1.block1.branch.bn2"].dcos2 == pytest.approx(dcos2)
    assert found["stage1.block1.branch.bn2"].cos2 == pytest.approx(dcos2 / 144)
    assert math.isnan(found["head.bn1"].cos2)  # a sum is in front of it


def test_noise_whose_variance_is_unknown_leaves_its_layer_unexplained():
    model = nn.Sequential(nn.AlphaDropout(0.5), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    found = explain(model, lambda: images(3))
    assert math.isnan(found["1"].local.value)
    assert not found["1"].exact
    assert found["1"].total.value > 0
    assert found["3"].local.value == 1


def test_pytorchs_own_modules_work():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(576, 32), nn.BatchNorm1d(32),
    )  # fmt: skip
    found = explain(model, lambda: images(8))
    assert [e.noises for e in found.values()] == [[], ["3"], ["7"]]
    assert max(deviations(found)) < 5


def test_nothing_of_the_model_changes():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    data = images(2)
    model = net(NETS[0], noise, batches=data)
    model.stage2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    explain(model, lambda: data)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == training
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_cannot_be_traced_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx"):
        explain(Odd(), lambda: images(1))


def test_no_batches_are_refused():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="no batches"):
        explain(model, list)
