"""Pooled statistics against float64 by hand over the joined activations."""

import math

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.networks.build import build
from vshift.networks.norm import BatchNorm
from vshift.shift.stats import (
    InputStats,
    TrainingLog,
    averaged_batches,
    batch_moments,
    batch_norms,
    capturing_inputs,
    jackknife,
    leave_one_out,
    pooled_moments,
    ratio_error,
    running_moments,
    shift_ratio,
)

SIZES = (8, 8, 3)


def small_net(noise=None):
    network = {"name": "preresnet", "depth": 8, **({"noise": noise} if noise else {})}
    return build(make_config(network=network), classes=10, channels=3, size=16, seed=0)


def drawn(seed=0, channels=5):
    """Batches whose levels differ, so that the spread of batch means counts."""
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, channels, 4, 4, generator=g) * (1 + i) + 3 * i
        for i, size in enumerate(SIZES)
    ]


def pooled(batches):
    stats = InputStats()
    for batch in batches:
        stats.add(batch)
    return stats.pooled()


def test_pooled_statistics_are_those_of_the_joined_batches():
    batches = drawn()
    found = pooled(batches)
    joined = torch.cat(batches).double()
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found.mean, joined.mean((0, 2, 3)), **close)
    torch.testing.assert_close(found.variance, joined.var((0, 2, 3), correction=1), **close)
    torch.testing.assert_close(found.biased_variance, joined.var((0, 2, 3), correction=0), **close)
    assert (found.count, found.batches) == (19 * 16, 3)
    assert found.mean.dtype == torch.float64


def test_averages_give_every_batch_the_same_weight():
    batches = drawn()
    found = pooled(batches)
    means = torch.stack([b.double().mean((0, 2, 3)) for b in batches])
    variances = torch.stack([b.double().var((0, 2, 3)) for b in batches])
    torch.testing.assert_close(found.average_mean, means.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.average_variance, variances.mean(0), rtol=1e-6, atol=1e-6)
    error = variances.mean(1).std() / math.sqrt(3)
    assert found.standard_error == pytest.approx(float(error), rel=1e-5)


def test_standard_error_is_the_spread_of_repeated_estimates():
    estimates, errors = [], []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        found = pooled([torch.randn(16, 2, generator=g) for _ in range(20)])
        estimates.append(float(found.average_variance.mean()))
        errors.append(found.standard_error**2)
    # A standard deviation from 200 estimates is known to 1/√400 = 5 %.
    assert torch.tensor(estimates).std() == pytest.approx(math.sqrt(sum(errors) / 200), rel=0.15)


def test_a_large_mean_does_not_cancel():
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1000
    found = pooled([x[:32], x[32:]])
    torch.testing.assert_close(found.variance, x.double().var((0, 2, 3)), rtol=1e-5, atol=0)


def test_low_precision_activations_are_summed_in_float32():
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    mean, variance = batch_moments(x)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)), rtol=0, atol=1e-6)
    wanted = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, wanted, rtol=1e-5, atol=0)


def test_float64_stays_float64():
    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e6
    torch.testing.assert_close(pooled([x]).variance, x.var(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(6, 2), (6, 2, 5), (6, 2, 5, 4), (6, 2, 5, 4, 3)])
def test_channels_are_the_second_dimension(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = x.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(pooled([x]).variance, rows.var(1), rtol=1e-5, atol=0)


def test_batches_of_one_value():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=g)
    found = pooled(x.split(1))
    torch.testing.assert_close(found.variance, x.double().var(0), rtol=1e-5, atol=0)
    assert found.average_variance.isnan().all()
    assert math.isnan(found.standard_error)
    single = pooled([x[:1]])
    assert single.variance.isnan().all()
    assert (single.biased_variance == 0).all()


def test_an_empty_batch_changes_nothing():
    batches = drawn()
    assert torch.equal(pooled([batches[0], batches[0][:0]]).variance, pooled(batches[:1]).variance)


def test_without_batches_there_is_nothing_to_take():
    with pytest.raises(ValueError, match="no batches"):
        InputStats().pooled()


def two_norms():
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))


def test_pooled_moments_are_those_of_the_bn_inputs():
    model, batches = two_norms().eval(), drawn()
    found = pooled_moments(model, lambda: batches)
    assert list(found) == ["0", "3"]
    with torch.no_grad():
        inputs = {"0": batches, "3": [model[:3](x) for x in batches]}
    for name, layer in found.items():
        exact = [x.double() for x in inputs[name]]
        variance = torch.stack([x.var((0, 2, 3), correction=1) for x in exact]).mean(0)
        mean = torch.stack([x.mean((0, 2, 3)) for x in exact]).mean(0)
        torch.testing.assert_close(layer.average_variance, variance, rtol=1e-5, atol=0)
        torch.testing.assert_close(layer.average_mean, mean, rtol=1e-5, atol=1e-6)


def test_layers_come_in_forward_order_and_only_if_they_ran():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused = (nn.BatchNorm1d(3) for _ in range(3))

        def forward(self, x):
            return self.last(self.first(x))

    assert list(pooled_moments(Crossed().eval(), lambda: [torch.randn(4, 3)])) == ["first", "last"]


def test_a_layer_that_runs_twice_pools_both_inputs():
    norm = nn.BatchNorm1d(3, affine=False)
    model = nn.Sequential(norm, nn.ReLU(), norm).eval()
    x = torch.randn(50, 3)
    both = torch.cat([x, model[1](norm(x))]).double()
    found = pooled_moments(model, lambda: [x])["0"]
    torch.testing.assert_close(found.variance, both.var(0), rtol=1e-5, atol=0)


def test_limit_stops_early():
    model, batches = two_norms().eval(), drawn()
    found = pooled_moments(model, lambda: iter(batches), limit=2)
    assert found["0"].count == 16 * 16


def test_hooks_go_after_an_error():
    model = two_norms().eval()

    def work():
        with capturing_inputs({"0": model[0]}, lambda name, x: None):
            model(torch.randn(2, 7, 4, 4))

    with pytest.raises(RuntimeError):
        work()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_leave_one_out_is_the_pooled_variance_of_all_and_of_all_but_one_batch():
    torch.manual_seed(0)
    batches = [torch.randn(n, 3, 4) * (i + 1) + i for i, n in enumerate((5, 8, 2))]
    stats = InputStats()
    for batch in batches:
        stats.add(batch)
    for i, level in enumerate(stats.leave_one_out().tolist()):
        kept = torch.cat([b for j, b in enumerate(batches) if j != i - 1]).double()
        assert level == pytest.approx(kept.var((0, 2), correction=0).mean().item(), rel=1e-6)


def test_leave_one_out_gives_sums_to_weight_by_counts():
    counts = torch.tensor([[10.0], [30.0]]).double()
    rows = torch.tensor([[1.0, 3.0], [4.0, 6.0]]).double()
    means = (leave_one_out(counts * rows) / leave_one_out(counts)).mean(1)
    assert means.tolist() == pytest.approx([(2 * 10 + 5 * 30) / 40, 5, 2])


def test_jackknife_error_of_a_mean_is_its_standard_error():
    torch.manual_seed(0)
    rows = torch.randn(25, 1).double()
    found = jackknife((leave_one_out(rows) / leave_one_out(torch.ones_like(rows))).flatten())
    assert found.value == pytest.approx(rows.mean().item())
    assert found.error == pytest.approx(rows.std().item() / 5)


def test_one_batch_has_no_error():
    assert math.isnan(jackknife(leave_one_out(torch.ones(1, 1).double()).flatten()).error)


def test_running_moments_are_the_buffers():
    model = small_net()
    model(torch.randn(8, 3, 16, 16))
    running = running_moments(model)
    assert list(running) == list(batch_norms(model))
    for name, layer in batch_norms(model).items():
        assert torch.equal(running[name].variance, layer.running_var.double())


def test_layers_without_running_statistics_are_left_out():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    assert list(batch_norms(model)) == ["1"]


@pytest.mark.parametrize(
    ("running", "met", "ratio"),
    [([2.0, 4.0], [1.0, 2.0], 2.0), ([1.0, 2.0], [2.0, 4.0], 2.0), ([1.0, 3.0], [3.0, 1.0], 1.0)],
)
def test_shift_ratio_is_a_ratio_of_channel_means(running, met, ratio):
    assert shift_ratio(torch.tensor(running), torch.tensor(met)) == pytest.approx(ratio)


def test_shift_ratio_without_variance():
    zero = torch.zeros(3)
    assert shift_ratio(zero, zero) == 1.0
    assert shift_ratio(zero, torch.ones(3)) != shift_ratio(zero, torch.ones(3))  # NaN


def test_ratio_error_against_monte_carlo():
    """Both variances are averages over batches: the moving one is worth (2 − m)/m of them."""
    torch.manual_seed(0)
    momentum, batches, repeats = 0.1, 30, 4000
    one = torch.randn(repeats, 200).double() * 0.05 + 1  # a layer's variance in 200 train batches
    running = torch.ones(repeats, dtype=torch.float64)
    for step in range(200):
        running = running.lerp(one[:, step], momentum)
    met = torch.randn(repeats, batches).double() * 0.05 + 1
    ratio = running / met.mean(1)
    claimed = ratio_error(1.0, 1.0, 0.05 / batches**0.5, batches, (2 - momentum) / momentum)
    assert ratio.std().item() == pytest.approx(claimed, rel=0.05)


def test_training_log_averages_the_unbiased_batch_variances():
    torch.manual_seed(0)
    layer = BatchNorm(5)
    model = nn.Sequential(layer)
    log = TrainingLog(model)
    batches = [torch.randn(size, 5, 4, 4) * (1 + i) + i for i, size in enumerate((8, 8, 3))]
    for batch in batches:
        model(batch)
        log.add()
    seen = log.compute_and_reset()["0"]
    variance = torch.stack([b.double().var((0, 2, 3), correction=1) for b in batches]).mean(0)
    mean = torch.stack([b.double().mean((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(seen.variance, variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(seen.mean, mean, rtol=1e-5, atol=1e-6)


def test_training_log_starts_anew_after_take():
    model = nn.Sequential(BatchNorm(5))
    log = TrainingLog(model)
    for scale in (1.0, 3.0):
        x = torch.randn(64, 5) * scale
        model(x)
        log.add()
        seen = log.compute_and_reset()["0"].variance
        torch.testing.assert_close(seen, x.double().var(0), rtol=1e-5, atol=0)


def test_a_moving_average_counts_as_two_minus_m_over_m_batches():
    """By Monte Carlo: its variance over that of one batch."""
    torch.manual_seed(0)
    momentum, average = 0.3, torch.zeros(20_000, dtype=torch.float64)
    for _ in range(60):
        average.lerp_(torch.randn_like(average), momentum)
    assert 1 / float(average.var()) == pytest.approx(averaged_batches(momentum), rel=0.05)
    assert averaged_batches(1.0) == 1
    assert averaged_batches(0.0) == math.inf
