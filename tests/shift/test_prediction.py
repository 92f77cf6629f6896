"""The exact identity against Monte Carlo, and the closed forms against it."""

import math

import pytest
import torch
from torch import nn

from vshift.networks.noise import Dropout, Gaussian, Uniform
from vshift.shift.prediction import (
    cosine,
    delta_a,
    delta_b,
    extra_variance,
    input_shape,
    noise_variance,
)

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
