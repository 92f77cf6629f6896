"""Noise by pattern in networks that are not ours: predictions, and ratios against plain hooks."""

import copy
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

from vshift.config.noise import Dropout as DropoutSection
from vshift.networks.noise import make_noise
from vshift.networks.placement import place_noise
from vshift.shift.decompose import decompose
from vshift.shift.modes import noise_modules
from vshift.shift.stats import pooled_moments, running_moments, shift_ratio


def images(count, size):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 32, 32, generator=generator) for _ in range(count)]


def noisy(name, rate=0.4, **keys):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10)
    noise = DropoutSection(kind="dropout", rate=rate, **keys)
    place_noise(model, [noise], make_noise, channels=3, size=32)
    return model


@pytest.mark.parametrize(
    ("name", "keys", "count"),
    [
        ("resnet18", {"before": "layer*.bn2"}, 8),
        ("resnet18", {"before": "layer1.*.conv2", "unit": "channel"}, 2),
        # One ReLU module per block, called twice: 12 layers have one noise in front of them.
        ("resnet18", {"after": "layer*.relu"}, 12),
        # The expanding convolution, before the depthwise one; in the first block it is depthwise
        # itself, and what it feeds is multiplied, which is not linear.
        ("mobilenet_v3_small", {"after": "features.*.block.0"}, 10),
        ("densenet121", {"before": "*.norm2"}, 58),
    ],
)
def test_predicted_equals_measured_within_three_standard_errors(name, keys, count):
    data = images(16, 8 if name == "densenet121" else 16)
    found = decompose(noisy(name, **keys), lambda: data, seed=3)
    exact = [layer for layer in found.values() if layer.noises and layer.exact]
    assert len(exact) == count
    assert all(layer.local.value > 1.5 for layer in exact)  # there is something to predict
    deviations = [abs(layer.excess.value) / layer.excess.error for layer in exact]
    # Student's t with 15 degrees of freedom leaves |t| > 3 a chance of 0.9 %.
    assert sum(deviation > 3 for deviation in deviations) <= 0.009 * count + (count > 20)
    assert max(deviations) < 4.5


def test_concatenated_noises_are_one_per_channel_and_exact():
    """Several reach a layer, each through a convolution of its own, and none meets another."""
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(8, (3, 3), 16, num_classes=10)
    noise = DropoutSection(kind="dropout", rate=0.4, before="*.conv2")
    place_noise(model, [noise], make_noise, channels=3, size=32)
    data = images(16, 16)
    found = decompose(model, lambda: data, seed=3)
    exact = [layer for layer in found.values() if layer.noises and layer.exact]
    # In each block the second and the third layer, and the transition or the last norm.
    assert sorted(len(layer.noises) for layer in exact) == [1, 1, 2, 2, 3, 3]
    assert max(layer.local.value for layer in exact) > 1.2
    assert max(abs(layer.excess.value) / layer.excess.error for layer in exact) < 3


def test_ratios_are_those_of_plain_hooks():
    """In float64, over three steps of SGD; the reference is torchvision, PyTorch, and arithmetic.

    What both share is the random draws: which values were kept.
    """
    model = noisy("resnet18", rate=0.5, before="layer*.bn2").double()
    plain = torchvision.models.resnet18(num_classes=10).double()
    plain.load_state_dict(copy.deepcopy(model.state_dict()))
    data = [batch.double() for batch in images(4, 8)]
    kept = []
    for noise in noise_modules(model).values():
        noise.register_forward_hook(lambda _m, _x, output: kept.append(output != 0))
    train(model, data)
    in_eval = pooled_moments(model.eval(), lambda: data)
    running = running_moments(model)
    ratios = {
        name: shift_ratio(running[name].variance, moments.average_variance)
        for name, moments in in_eval.items()
    }

    def drop(_module, args):
        return (args[0] * kept.pop(0) * 2,) if plain.training else None

    variances = {True: defaultdict(list), False: defaultdict(list)}
    for name, module in plain.named_modules():
        if name.startswith("layer") and name.endswith("bn2"):
            module.register_forward_pre_hook(drop)
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda m, x, n=name: variances[m.training][n].append(x[0].var((0, 2, 3)).detach())
            )
    kept = kept[: 8 * len(data)]
    train(plain, data)
    assert not kept
    plain.eval()
    with torch.no_grad():
        for batch in data:
            plain(batch)
    assert len(ratios) == 20
    for name, ratio in ratios.items():
        moving = torch.ones_like(variances[True][name][0])
        for variance in variances[True][name]:
            moving = 0.9 * moving + 0.1 * variance
        tested = torch.stack(variances[False][name]).mean(0)
        by_hand = (tested.mean() / moving.mean()).item()
        assert ratio == pytest.approx(max(by_hand, 1 / by_hand), rel=1e-9)


def train(model, data):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
    for batch in data:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), torch.arange(len(batch)) % 10).backward()
        optimizer.step()
