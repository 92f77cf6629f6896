"""The CPU kernels against known answers, float64, and the distributions that they promise."""

import ctypes
import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from vshift import kernels
from vshift.kernels.functions import DROP, NORMAL, UNIFORM


def words(block, key):
    """[4, 16]: word j of the counter 16·block + i."""
    out = (ctypes.c_uint32 * 64)()
    kernels.library().vshift_random(block, key, out)
    return torch.tensor(list(out)).view(4, 16)


def threefry(counter, key):
    """Threefry4x32-20 from its definition (Salmon et al. 2011, section 4.2), in Python's ints."""
    mask = 2**32 - 1
    keys = [*key, 0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3]]
    turns = [(10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20)]
    x = [(c + k) & mask for c, k in zip(counter, keys, strict=False)]
    for number in range(20):
        for start, turn in zip((0, 2), turns[number % 8], strict=True):
            a, b = x[start], x[start + 1]
            a = (a + b) & mask
            b = ((b << turn | b >> (32 - turn)) & mask) ^ a
            x[start], x[start + 1] = a, b
        x[1], x[3] = x[3], x[1]
        if number % 4 == 3:
            turn = number // 4 + 1
            x = [(v + keys[(turn + j) % 5] + (turn if j == 3 else 0)) & mask
                 for j, v in enumerate(x)]  # fmt: skip
    return x


def test_the_generator_gives_the_published_answer():
    """The first of the known answers that come with Random123: counter and key 0."""
    published = [0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8]
    assert threefry([0, 0, 0, 0], [0, 0, 0, 0]) == published
    assert words(0, 0)[:, 0].tolist() == published


@pytest.mark.parametrize("block", [0, 1, 77, 2**28 - 1, 2**28, 2**40 + 5])
@pytest.mark.parametrize("key", [0, 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1])
def test_the_generator_against_its_definition(block, key):
    got = words(block, key)
    for lane in (0, 7, 15):
        place = 16 * block + lane
        counter = [place % 2**32, place >> 32, 0, 0]
        assert got[:, lane].tolist() == threefry(counter, [key % 2**32, key >> 32, 0, 0])


def drawn(kind, scale, kept=0, count=1_000_000, seed=0):
    torch.manual_seed(seed)
    return kernels.multiply(torch.ones(count), kind, scale, kept).double()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_is_bernoulli(rate):
    kept = round((1 - rate) * 2**16)
    values = drawn(DROP, 2**16 / kept, kept)
    assert sorted(set(values.tolist())) == pytest.approx([0, 2**16 / kept])
    hits = int((values > 0).sum())
    assert stats.binomtest(hits, len(values), kept / 2**16).pvalue > 1e-3
    # Neighbours, and values 16 and 128 apart (lanes, tiles), know nothing of each other.
    b = (values > 0).double() - kept / 2**16
    for lag in (1, 2, 16, 32, 128):
        correlation = float((b[lag:] * b[:-lag]).mean() / b.square().mean())
        assert abs(correlation) < 4 / math.sqrt(len(b))


def test_uniform_noise_is_uniform():
    beta = math.sqrt(3)
    values = drawn(UNIFORM, beta)
    assert stats.kstest(values.numpy(), stats.uniform(1 - beta, 2 * beta).cdf).pvalue > 1e-3
    assert values.min() >= 1 - beta
    assert values.max() <= 1 + beta


def test_normal_noise_is_normal():
    sigma = 0.7
    values = (drawn(NORMAL, sigma, count=4_000_000) - 1) / sigma
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    for power, expected in ((2, 1), (4, 3), (6, 15)):
        terms = values**power
        assert float(terms.mean()) == pytest.approx(expected, abs=4 * float(terms.std()) / 2000)
    # The tails are there: expected numbers beyond 4 and 4.5 standard deviations.
    for bound in (4.0, 4.5):
        expected = 2 * stats.norm.sf(bound) * len(values)
        found = int((values.abs() > bound).sum())
        assert abs(found - expected) < 5 * math.sqrt(expected)
    # The two of a pair are uncorrelated, and so are their sizes.
    pairs = values.view(-1, 2, 16)
    cosines, sines = pairs[:, 0].flatten(), pairs[:, 1].flatten()
    for a, b in ((cosines, sines), (cosines.abs(), sines.abs())):
        a, b = a - a.mean(), b - b.mean()
        correlation = float((a * b).mean() / (a.std() * b.std()))
        assert abs(correlation) < 4 / math.sqrt(len(a))


@pytest.mark.parametrize("kind", [DROP, UNIFORM, NORMAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_uses_the_same_multipliers(kind, dtype):
    x = torch.randn(3, 5, 7, 9).to(memory_format=torch.channels_last).to(dtype).requires_grad_()
    y = kernels.multiply(x, kind, 1.5, 2**15)
    y.backward(x.detach())  # dx = m·x, rounded as y is
    assert torch.equal(x.grad, y)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("kind", [DROP, UNIFORM, NORMAL])
def test_multipliers_do_not_depend_on_threads_type_or_length(kind):
    def values(count, dtype=torch.float32, threads=1):
        torch.manual_seed(5)
        torch.set_num_threads(threads)
        return kernels.multiply(torch.ones(count, dtype=dtype), kind, 0.5, 2**15)

    whole = values(1000)
    assert torch.equal(values(1000, threads=2), whole)
    assert torch.equal(values(77), whole[:77])
    assert torch.equal(values(1000, torch.bfloat16), whole.bfloat16())


def test_a_seed_gives_the_noise_and_another_one_other_noise():
    a, b, c = (drawn(NORMAL, 1.0, count=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.isclose(a, c).any()


def test_nan_and_infinity_pass():
    x = torch.tensor([[float("nan"), float("inf")]] * 64)
    y = kernels.multiply(x, DROP, 2.0, 2**15)
    assert y[:, 0].isnan().all()
    mean, variance = torch.zeros(2), torch.zeros(2)
    z = kernels.normalise(x, None, None, 1e-5, mean, variance, True)
    assert z.isnan().all()
    for dtype in (torch.float32, torch.bfloat16):
        shown = kernels.affine(x.to(dtype), torch.ones(2), torch.zeros(2), True)
        assert shown[:, 0].isnan().all()
        assert shown[:, 1].isinf().all()


SHAPES = [(2, 1), (5, 3), (64, 16), (65, 21), (128, 20, 8, 8), (3, 6, 5, 7), (1, 64, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_against_float64(shape, relu, affine):
    torch.manual_seed(1)
    channels = shape[1]
    x = torch.randn(shape) * 3 + torch.randn(channels).view(1, -1, *[1] * (len(shape) - 2))
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    weight, bias = torch.randn(channels), torch.randn(channels)
    given = (weight.requires_grad_(), bias.requires_grad_()) if affine else (None, None)
    mean, variance = torch.full((channels,), 9.0), torch.full((channels,), 9.0)
    y = kernels.normalise(x, *given, 1e-5, mean, variance, relu)
    dy = torch.randn_like(y)
    y.backward(dy)

    exact = x.detach().double().requires_grad_()
    others = [t.detach().double().requires_grad_() if affine else None for t in (weight, bias)]
    seen = torch.zeros(channels).double(), torch.zeros(channels).double()
    z = F.batch_norm(exact, *seen, *others, True, 1.0, 1e-5)
    (F.relu(z) if relu else z).backward(dy.double())
    close = {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(y.double(), F.relu(z) if relu else z, **close)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((mean.double(), variance.double()), seen, **close)
    if affine:
        grads = [t.grad.double() for t in (weight, bias)]
        torch.testing.assert_close(grads, [t.grad for t in others], rtol=1e-4, atol=1e-4)


def test_a_mean_far_from_zero_costs_no_accuracy():
    """Where E[x²] − E[x]² in float32 is 17 % wrong: a mean of 500 standard deviations."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 4) + 500
    mean, variance = torch.zeros(4), torch.zeros(4)
    kernels.normalise(x, None, None, 1e-5, mean, variance, False)
    assert torch.allclose(variance.double(), x.double().var(0), rtol=1e-5)
    assert torch.allclose(mean.double(), x.double().mean(0), rtol=1e-6)


def test_bf16_rounds_once():
    x = torch.randn(64, 8).bfloat16()
    scale, shift = torch.rand(8), torch.rand(8)
    exact = x.double() * scale.double() + shift.double()
    assert torch.equal(kernels.affine(x, scale, shift, False), exact.float().bfloat16())


def test_batch_norm_does_not_depend_on_the_number_of_threads():
    x = torch.randn(3000, 24)
    results = []
    for threads in (2, 1):  # 1 again for the tests that follow
        torch.set_num_threads(threads)
        mean, variance = torch.zeros(24), torch.zeros(24)
        leaf = x.clone().requires_grad_()
        y = kernels.normalise(leaf, None, None, 1e-5, mean, variance, True)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, mean, variance))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_a_channel_does_not_depend_on_its_neighbours(dtype, relu):
    """Whatever tile of channels it falls into, of at least 16."""
    torch.manual_seed(0)
    x, dy = (torch.randn(200, 216).to(dtype) for _ in range(2))
    weight, bias = torch.randn(216), torch.randn(216)

    def results(channels):
        leaf = x[:, channels].contiguous().requires_grad_()
        own = [t[channels].contiguous().requires_grad_() for t in (weight, bias)]
        mean, variance = torch.zeros(2, leaf.shape[1])
        y = kernels.normalise(leaf, *own, 1e-5, mean, variance, relu)
        y.backward(dy[:, channels].contiguous())
        with torch.no_grad():
            shown = kernels.affine(leaf, own[0], own[1], relu)
        return y.detach(), leaf.grad, mean, variance, *(t.grad for t in own), shown

    every = results(slice(None))
    for first, count in ((0, 16), (1, 17), (3, 33), (0, 60), (7, 65), (0, 80), (100, 108)):
        chosen = slice(first, first + count)
        for one, of_all in zip(results(chosen), every, strict=True):
            assert torch.equal(one, of_all[..., chosen]), (first, count)


def test_what_fits():
    images = torch.zeros(2, 3, 4, 4)
    assert kernels.fits(images.to(memory_format=torch.channels_last))
    assert kernels.fits(torch.zeros(2, 3).bfloat16())
    assert not kernels.fits(images)
    assert not kernels.fits(torch.zeros(2, 3).double())
    assert not kernels.fits(torch.zeros(3, 2).T)
    assert not kernels.fits(torch.zeros(0, 3))
