"""Every noise's mean and variance, and the identity in eval mode."""

import math

import pytest
import torch

from tests.configs import make_config
from vshift.networks.noise import Dropout, Gaussian, Uniform, make_noise

VARIANCES = [1 / 9, 1 / 3, 1.0, 7 / 3]
KINDS = [Dropout, Gaussian, Uniform]


def kurtosis(kind: type, variance: float) -> float:
    """E[(m − 1)⁴]/s⁴ of a multiplier, from its distribution: decides how well s² can be seen."""
    if kind is Gaussian:
        return 3.0
    if kind is Uniform:
        return 1.8
    keep = 1 / (1 + variance)
    return (1 - 3 * keep * (1 - keep)) / (keep * (1 - keep))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_mean_1_and_variance_s2_by_monte_carlo(kind, variance, unit):
    torch.manual_seed(0)
    noise = kind(variance, unit).train()
    shape = (400, 50, 10, 10) if unit == "element" else (4000, 500, 1, 1)
    m = noise(torch.ones(shape)).double()
    n = m.numel()
    assert abs(m.mean().item() - 1) < 4.5 * math.sqrt(variance / n)
    error = variance * math.sqrt((kurtosis(kind, variance) - 1) / n)
    # Dropout at rate 0.5 has no spread of its own here: only that of the mean, squared, is left.
    assert abs(m.var().item() - variance) < 4.5 * error + 20 * variance / n


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_biases_neither_mean_nor_variance(kind):
    torch.manual_seed(0)
    x = torch.full((1_000_000, 4), 1.0, dtype=torch.bfloat16)
    y = kind(3 / 7).train()(x)
    assert y.dtype == torch.bfloat16
    assert y.double().mean().item() == pytest.approx(1, abs=3e-3)
    assert y.double().var().item() == pytest.approx(3 / 7, rel=4e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_identity_in_eval_mode_and_at_variance_0(kind, unit):
    x = torch.randn(4, 3, 5, 5)
    before = torch.random.get_rng_state()
    assert kind(1.0, unit).eval()(x) is x
    assert kind(0.0, unit).train()(x) is x
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_channel_noise_is_one_number_for_each_channel_of_each_image(kind):
    torch.manual_seed(0)
    y = kind(1.0, "channel").train()(torch.ones(64, 8, 4, 4))
    assert bool((y == y[:, :, :1, :1]).all())
    assert y[:, :, 0, 0].unique().numel() > 1
    vectors = kind(1.0, "channel").train()(torch.ones(64, 8))
    assert vectors.shape == (64, 8)
    assert vectors.unique().numel() > 1


def test_dropout_drops_its_rate_and_scales_the_rest():
    torch.manual_seed(0)
    y = Dropout(3 / 7).train()(torch.ones(1000, 1000))
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=0.002)
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / 0.7]))


def test_uniform_noise_stays_within_beta():
    torch.manual_seed(0)
    y = Uniform(0.5**2 / 3).train()(torch.ones(1000, 100))
    assert y.min().item() == pytest.approx(0.5, abs=0.001)
    assert y.max().item() == pytest.approx(1.5, abs=0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_multiplier_and_memory_format_stays(kind):
    x = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    y = kind(1.0).train()(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


@pytest.mark.parametrize(
    ("noise", "kind", "variance"),
    [
        ({"kind": "dropout", "rate": 0.5}, Dropout, 1.0),
        ({"kind": "dropout", "rate": 0.1}, Dropout, 1 / 9),
        ({"kind": "gaussian", "sigma": 0.5}, Gaussian, 0.25),
        ({"kind": "gaussian", "rate": 0.5}, Gaussian, 1.0),
        ({"kind": "uniform", "beta": 0.3}, Uniform, 0.03),
        ({"kind": "uout", "rate": 0.7}, Uniform, 7 / 3),
    ],
)
def test_config_to_noise_variance(noise, kind, variance):
    config = make_config(
        network={"name": "preresnet", "depth": 8, "noise": {**noise, "position": "before_bn"}}
    )
    made = make_noise(config.network.noises[0])
    assert type(made) is kind
    assert made.variance == pytest.approx(variance)


@pytest.mark.parametrize(("rate", "beta"), [(0.1, 0.577), (0.3, 1.134), (0.5, 1.732), (0.7, 2.646)])
def test_matched_uniform_widths_are_the_known_ones(rate, beta):
    assert math.sqrt(3 * rate / (1 - rate)) == pytest.approx(beta, abs=5e-4)


def test_an_impossible_variance_is_refused():
    with pytest.raises(ValueError, match="at least 0 and finite, not -1"):
        Dropout(-1)
    with pytest.raises(ValueError, match="not nan"):
        Gaussian(float("nan"))
