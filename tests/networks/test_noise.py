"""Every noise against its docstring's formulas by Monte Carlo, and in eval mode.

Inputs are fixed tensors of known mean c and variance v, so that the only chance is the noise's and
an expected variance is exact. Images are independent, so the standard error of an average comes
from its spread over images.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.configs import make_config
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.noise import (
    AlphaDropout,
    ClassicDropout,
    DropBlock,
    Dropout,
    Gaussian,
    Multiplicative,
    Noise,
    ScaledDropout,
    Uniform,
    make_noise,
)
from vshift.shift.decompose import extra_variance, noise_variance
from vshift.shift.modes import modes, noise_modules

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


RATES = [0.1, 0.5, 0.7]
FLOOR = -1.7580993408473766  # of SELU
DROPPING = [ClassicDropout, ScaledDropout, AlphaDropout, lambda rate: DropBlock(rate, 3)]


def images(*shape: int, mean: float = 0.8, sd: float = 1.3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * sd + mean


def assert_mean(values: Tensor, expected: float | Tensor, precision: float = 0.03) -> None:
    """The average over independent rows is as expected within 4.5 of its own standard errors.

    Args:
        values: [N, …]; each column is a test of its own.
        precision: the largest standard error that still tells something, relative.
    """
    values = values.double()
    error = values.std(0) / math.sqrt(len(values))
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert bool((error < precision * expected.abs()).all())
    assert bool(((values.mean(0) - expected).abs() < 4.5 * error + 1e-4 * expected.abs()).all())


def squares(y: Tensor, mean: float | Tensor) -> Tensor:
    """Each image's squared distances from the mean of all, per channel: [N, C]."""
    return (y.double() - torch.as_tensor(mean).double().view(1, -1, 1, 1)).square().mean((2, 3))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of the values there are."""
    return x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)


def alpha_scale(p: float) -> float:
    return (p * (1 + (1 - p) * FLOOR**2)) ** -0.5


def masked(p: float, c: Tensor, v: Tensor, scale: float, offset: float = 0.0) -> list[Tensor]:
    """Mean and variance of b·(scale·x + offset) with b ~ Bernoulli(p), E x = c, Var x = v.

    By the law of total variance: E[Var(·|b)] + Var(E[·|b]).
    """
    inside = scale * c + offset
    return [p * inside, p * scale**2 * v + p * (1 - p) * inside**2]


# name → how to make one from its rate, and (p, c, v) ↦ mean and variance in training
DIRECT = {
    "classic": (ClassicDropout, lambda p, c, v: masked(p, c, v, 1.0)),
    "scaled": (ScaledDropout, lambda p, c, v: masked(p, c, v, p**-0.5)),
    "alpha": (
        AlphaDropout,
        lambda p, c, v: (
            alpha_scale(p) * p * c,
            masked(p, c, v, alpha_scale(p), -alpha_scale(p) * FLOOR)[1],
        ),
    ),
    "dropblock": (lambda q: DropBlock(q, 3), lambda p, c, v: masked(p, c, v, 1 / p)),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", DIRECT)
def test_mean_and_variance_in_training(kind, rate):
    torch.manual_seed(0)
    make, formula = DIRECT[kind]
    x = images(8000, 2, 6, 6)
    mean, variance = formula(1 - rate, *moments(x))
    y = make(rate).train()(x)
    assert_mean(y.mean((2, 3)), mean)
    assert_mean(squares(y, mean), variance)


@pytest.mark.parametrize("rate", RATES)
def test_the_docstrings_give_the_same_ratios(rate):
    """Var_train/Var_eval of each docstring, against the definitions in DIRECT."""
    p, c, v = 1 - rate, torch.tensor(0.8), torch.tensor(1.7)
    train = {name: formula(p, c, v)[1].item() for name, (_, formula) in DIRECT.items()}
    inverted = (v + rate * c**2) / p / v
    assert train["dropblock"] == pytest.approx(float(inverted * v))
    assert train["classic"] / (p**2 * v) == pytest.approx(float(inverted))
    assert train["scaled"] / v == pytest.approx(float(1 + rate * c**2 / v))
    a = alpha_scale(p)
    assert train["alpha"] == pytest.approx(float(a**2 * p * (v + rate * (c - FLOOR) ** 2)))
    standard = DIRECT["alpha"][1](p, torch.tensor(0.0), torch.tensor(1.0))
    assert [t.item() for t in standard] == pytest.approx([0, 1])


def test_classic_dropout_is_dropout_times_its_keep_rate():
    x = images(64, 4, 8, 8)
    torch.manual_seed(0)
    classic = ClassicDropout(0.75).train()(x)
    torch.manual_seed(0)
    inverted = Dropout(3.0).train()(x)
    torch.testing.assert_close(classic, inverted * 0.25)
    torch.testing.assert_close(ClassicDropout(0.75).eval()(x), x * 0.25)


@pytest.mark.parametrize("rate", [0.3, 0.7])
@pytest.mark.parametrize("kind", ["classic", "scaled", "alpha", "depth"])
def test_variance_after_a_convolution(kind, rate):
    """factor²·(Var_eval + s² Σ w² E[(x − origin)²]), the second term as `extra_variance` has it."""
    torch.manual_seed(0)
    p = 1 - rate
    unit, origin, padding = "element", 0.0, 1
    noise: Noise
    if kind == "classic":
        noise, factor = ClassicDropout(rate), p
    elif kind == "scaled":
        noise, factor = ScaledDropout(rate), math.sqrt(p)
    elif kind == "alpha":
        noise, factor, origin, padding = AlphaDropout(rate), alpha_scale(p) * p, FLOOR, 0
    else:
        noise, factor, unit = Dropout(rate / p, "sample"), 1.0, "sample"
    conv = nn.Conv2d(4, 3, 3, padding=padding, bias=False)
    x = images(8000, 4, 6, 6)
    with torch.no_grad():
        clean, noisy = conv(x), conv(noise.train()(x))
    mean, variance = moments(clean)
    extra = extra_variance(x - origin, rate / p, unit, conv)
    assert_mean(squares(noisy, factor * mean), factor**2 * (variance + extra))


@pytest.mark.parametrize("unit", ["element", "channel", "sample"])
@pytest.mark.parametrize("kind", [Dropout, Gaussian, Uniform])
def test_multiplicative_noise_after_a_convolution_and_before_bn(kind, unit):
    torch.manual_seed(0)
    noise, conv = kind(0.5, unit).train(), nn.Conv2d(4, 2, 3, padding=1, groups=2)
    x = images(8000, 4, 5, 5)
    with torch.no_grad():
        clean, noisy = conv(x), conv(noise(x))
    mean, variance = moments(clean)
    assert_mean(squares(noisy, mean), variance + extra_variance(x, 0.5, unit, conv))
    mean, variance = moments(x)
    assert_mean(squares(noise(x), mean), variance + extra_variance(x, 0.5, unit, None))


def test_stochastic_depth_after_the_sum():
    """Var(y + m f) = Var(y + f) + s² E[f²], whatever y and f have to do with each other."""
    torch.manual_seed(0)
    y = images(20_000, 2, 3, 3)
    f = 0.5 * y + images(20_000, 2, 3, 3, mean=-0.4).flip(0)
    mean, variance = moments(y + f)
    out = y + Dropout(0.25 / 0.75, "sample").train()(f)
    second = f.double().square().mean((0, 2, 3))
    assert_mean(squares(out, mean), variance + 0.25 / 0.75 * second)


@pytest.mark.parametrize("shape", [(4000, 3, 4, 4), (4000, 3)])
def test_stochastic_depth_keeps_or_drops_whole_images(shape):
    torch.manual_seed(0)
    y = Dropout(0.25, "sample").train()(torch.ones(shape)).flatten(1)
    assert bool((y == y[:, :1]).all())
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1.25]))
    assert_mean((y[:, 0] == 0).double(), 0.2, precision=0.05)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_dropblock_drops_whole_squares(size):
    """What is dropped is what a square can sweep that stays inside it, or outside the image."""
    torch.manual_seed(0)
    dropped = (DropBlock(0.3, size).train()(torch.ones(200, 3, 12, 12)) == 0).float()
    assert 0 < dropped.mean() < 1
    around = F.pad(dropped, [size - 1] * 4, value=1.0)
    corners = -F.max_pool2d(-around, size, 1)  # 1 where a whole square is dropped
    swept = F.max_pool2d(F.pad(corners, [size - 1] * 4), size, 1)
    inside = swept[..., size - 1 : size + 11, size - 1 : size + 11]
    assert torch.equal(inside, dropped)


@pytest.mark.parametrize(("rate", "size", "side"), [(0.3, 3, 8), (0.1, 7, 8), (0.5, 7, 4)])
def test_dropblock_drops_every_pixel_at_the_rate(rate, size, side):
    torch.manual_seed(0)
    dropped = DropBlock(rate, size).train()(torch.ones(20_000, 2, side, side)) == 0
    share = dropped.double().mean((0, 1))  # a pixel of different images and channels
    error = math.sqrt(rate * (1 - rate) / 40_000)
    assert (share - rate).abs().max() < 4.5 * error
    assert_mean(dropped.double().mean((1, 2, 3)), rate)


@pytest.mark.parametrize("offset", [(0, 0), (0, 1), (1, 2), (2, 2), (3, 0)])
def test_dropblock_covariance_of_two_pixels(offset):
    torch.manual_seed(0)
    rate, size, (dy, dx) = 0.3, 3, offset
    m = DropBlock(rate, size).train()(torch.ones(20_000, 2, 6, 6)).double() - 1
    product = m[..., : 6 - dy, : 6 - dx] * m[..., dy:, dx:]
    shared = max(0, size - dy) * max(0, size - dx)
    expected = (1 - rate) ** (-shared / size**2) - 1  # (1 − γ)^(size²) = 1 − rate
    rows = product.mean((1, 2, 3))
    assert abs(rows.mean() - expected) < 4.5 * rows.std() / math.sqrt(len(rows))
    apart = m[:, 0] * m[:, 1]
    assert abs(apart.mean((1, 2)).mean()) < 4.5 * apart.mean((1, 2)).std() / math.sqrt(len(rows))


def test_dropblock_of_size_1_and_of_vectors_is_dropout():
    for noise, shape in [(DropBlock(0.25, 1), (50, 4, 6, 6)), (DropBlock(0.25, 7), (500, 16))]:
        x = images(*shape)
        torch.manual_seed(0)
        y = noise.train()(x)
        torch.manual_seed(0)
        torch.testing.assert_close(y, Dropout(1 / 3).train()(x))


@pytest.mark.parametrize("rate", [0.25, 0.5])
@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
def test_alpha_dropout_has_the_distribution_of_torchs(rate, value):
    """Two values, the same as PyTorch's, the dropped one with probability `rate`."""
    torch.manual_seed(0)
    x = torch.full((40_000, 4), value)
    ours, theirs = AlphaDropout(rate).train()(x), nn.AlphaDropout(rate).train()(x)
    low, high = sorted(theirs.unique().tolist())
    values = ours.unique()
    torch.testing.assert_close(values, torch.tensor([low, high]))
    for y in (ours, theirs):
        assert_mean((y < (low + high) / 2).double(), rate)


@pytest.mark.parametrize("make", DROPPING)
def test_eval_mode_draws_nothing_and_rate_0_is_the_identity(make):
    x = images(4, 3, 5, 5)
    before = torch.random.get_rng_state()
    y = make(0.4).eval()(x)
    assert torch.equal(y, x * 0.6) if make is ClassicDropout else y is x
    assert make(0.0).train()(x) is x
    assert make(0.0).eval()(x) is x
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(6, 8, 5, 5), (6, 8)])
@pytest.mark.parametrize("make", [*DROPPING, lambda rate: Dropout(rate, "sample")])
def test_gradient_low_precision_and_memory_format(make, shape):
    noise = make(0.4).train()

    def run(x):
        torch.manual_seed(3)
        return noise(x)

    x = images(*shape).double().requires_grad_()
    y = run(x)
    y.sum().backward()
    # Every kind is affine in x once its numbers are drawn.
    torch.testing.assert_close(run(x + 1.0) - y, x.grad)
    low = images(*shape).bfloat16()
    assert run(low).dtype == torch.bfloat16
    assert torch.equal(run(low), run(low.float()).bfloat16())
    if len(shape) == 4:
        y = run(images(*shape).to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("noise", "kind", "text"),
    [
        ({"kind": "classic_dropout", "rate": 0.3}, ClassicDropout, "rate=0.3"),
        ({"kind": "scaled_dropout", "rate": 0.3}, ScaledDropout, "rate=0.3"),
        ({"kind": "alpha_dropout", "rate": 0.3}, AlphaDropout, "rate=0.3"),
        ({"kind": "dropblock", "rate": 0.3}, DropBlock, "rate=0.3, size=7"),
        ({"kind": "dropblock", "rate": 0.3, "size": 4}, DropBlock, "rate=0.3, size=4"),
        (
            {"kind": "stochastic_depth", "rate": 0.2},
            Dropout,
            "rate=0.2, variance=0.25, unit=sample",
        ),
        ({"kind": "gaussian", "sigma": 1, "unit": "sample"}, Gaussian, "variance=1, unit=sample"),
    ],
)
def test_config_to_module(noise, kind, text):
    position = {"position": "before_bn"}
    network = {"name": "preresnet", "depth": 8, "noise": {**noise, **position}}
    made = make_noise(make_config(network=network).network.noises[0])
    assert type(made) is kind
    assert made.extra_repr() == text


def test_only_independent_noise_of_mean_1_has_an_s2():
    assert noise_variance(Dropout(0.25, "sample")) == (0.25, "sample")
    for make in DROPPING:
        noise = make(0.3)
        assert isinstance(noise, Noise)
        assert not isinstance(noise, Multiplicative)
        with pytest.raises(ValueError, match="is not independent multiplicative noise of mean 1"):
            noise_variance(noise)


def test_measurements_find_every_kind_and_switch_it_to_its_eval_form():
    block = "bn relu conv noise bn relu conv noise2"
    noise = [{"kind": "classic_dropout", "rate": 0.5}, {"kind": "stochastic_depth", "rate": 0.5}]
    config = make_config(network={"name": "preresnet", "depth": 8, "block": block, "noise": noise})
    model = build(config, classes=10, channels=3, size=16, seed=0)
    assert len(noise_modules(model)) == 6
    x = images(4, 3, 16, 16)
    expected = model.eval()(x)
    model.train()
    with modes(model, noise=False, norm="running"):
        assert torch.equal(model(x), expected)
    with modes(model, noise=True, norm="running"):
        assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_impossible_arguments_are_refused(rate):
    with pytest.raises(ValueError, match="a drop rate is in "):
        ClassicDropout(rate)
    with pytest.raises(ValueError, match="at least 1 pixel, not 0"):
        DropBlock(0.5, 0)
    with pytest.raises(ValueError, match="one of sample, channel, element, not 'pixel'"):
        Dropout(1.0, "pixel")


STRENGTHS = [("dropout", "rate"), ("gaussian", "sigma"), ("uniform", "beta"),
             ("stochastic_depth", "rate"), ("dropblock", "rate"), ("classic_dropout", "rate"),
             ("gaussian", "rate")]  # fmt: skip
FAMILIES = [
    ({"name": "preresnet", "depth": 20}, 9),
    ({"name": "preresnet", "depth": 29, "bottleneck": True}, 9),
    ({"name": "resnet", "depth": 14}, 6),
    ({"name": "resnet", "depth": 18}, 8),
    ({"name": "resnet", "depth": 34}, 16),
    ({"name": "wrn", "depth": 16, "width": 1}, 6),
    ({"name": "resnext", "depth": 20, "cardinality": 2, "base_width": 4}, 6),
    ({"name": "densenet", "depth": 22, "growth_rate": 4}, 9),
    ({"name": "densenet", "depth": 13, "growth_rate": 4, "bottleneck": False}, 9),
    ({"name": "vgg", "depth": 13, "width": 0.125}, 10),
    ({"name": "mlp", "widths": [8, 8, 8]}, 3),
    ({"name": "vit", "depth": 4, "width": 16}, 4),
]


def built(noise, network, epochs=10):
    config = make_config(network={**network, "noise": noise}, epochs=epochs)
    model = build(config, classes=10, channels=3, size=32, seed=0)
    return [module for module in model.modules() if isinstance(module, Noise)]


@pytest.mark.parametrize(("network", "blocks"), FAMILIES, ids=str)
def test_a_rate_that_grows_over_the_blocks_is_timms_rule(network, blocks):
    """`torch.linspace(0, drop_path_rate, depth)`, and twice the same in a block with two places."""
    noise = {"kind": "dropout", "rate": 0.4, "position": ["before_bn", "before_classifier"],
             "over_depth": "linear"}  # fmt: skip
    rates = [module.rate for module in built(noise, network)]
    wanted = torch.linspace(0, 0.4, blocks).tolist()
    each = (len(rates) - 1) // blocks
    assert rates == pytest.approx([rate for rate in wanted for _ in range(each)] + [0.4], abs=1e-6)


@pytest.mark.parametrize(("kind", "key"), STRENGTHS)
def test_every_kind_grows_in_its_own_strength(kind, key):
    noise = {"kind": kind, key: 0.4, "position": "before_last_bn"}
    linear = built({**noise, "over_depth": "linear"}, FAMILIES[0][0])
    values = [0.4 * i / 8 for i in range(9)]
    constant = [built({**noise, key: value}, FAMILIES[0][0])[0] for value in values]
    assert [repr(module) for module in linear] == [repr(module) for module in constant]


def test_noise_at_patterns_grows_from_the_first_module_to_the_last():
    noise = {"kind": "dropout", "rate": 0.4, "before": ["stage?.block1.branch.bn2", "head.fc1"],
             "over_depth": "linear"}  # fmt: skip
    rates = [module.rate for module in built(noise, {"name": "preresnet", "depth": 8})]
    assert rates == pytest.approx([0, 0.4 / 3, 0.8 / 3, 0.4])
    mixed = {**noise, "before": "head.fc1", "after": ["stage3", "stem"]}  # by calls, not by keys
    rates = [module.rate for module in built(mixed, {"name": "preresnet", "depth": 8})]
    assert rates == pytest.approx([0, 0.2, 0.4])
    with pytest.raises(ConfigError, match=r"over_depth: linear begins with no noise at the first "
                       r"module, and head\.fc1 is the only one"):  # fmt: skip
        built({**noise, "before": "head.fc1"}, {"name": "preresnet", "depth": 8})


@pytest.mark.parametrize("kind", ["dropout", "classic_dropout", "alpha_dropout", "dropblock"])
@pytest.mark.parametrize(("span", "epochs"), [({}, range(1, 11)), ({"until": 0.3}, range(1, 4)),
    ({"from": 0.5}, range(6, 11)), ({"from": 0.24, "until": 0.26}, range(3, 4))])  # fmt: skip
def test_noise_of_a_part_of_the_run_is_the_identity_elsewhere(kind, span, epochs):
    noise = {"kind": kind, "rate": 0.5, "position": "before_last_bn", **span}
    module = built(noise, {"name": "preresnet", "depth": 8})[0]
    assert repr(module).endswith(", epochs 1 to 3)") == (span == {"until": 0.3})
    assert repr(module).endswith(", epoch 3)") == (len(epochs) == 1)
    x = torch.randn(4, 16, 8, 8)
    for epoch in range(1, 11):
        before = module.active
        assert module.enter_epoch(epoch) == (before != (epoch in epochs))
        for training in (True, False):
            module.train(training)
            changes = not torch.equal(module(x), x)
            assert changes == (epoch in epochs and (training or kind == "classic_dropout"))
