"""Distances between running statistics and batches, against simulated moving averages."""

import math

import pytest
import torch
from torch import nn

from vshift.auditing.distances import (
    effective_sample_size,
    expected_lag,
    is_clear,
    is_usable,
    largest_by_chance,
    noise_floor,
    standardized_distance,
)
from vshift.auditing.passes import LayerStats
from vshift.shift.stats import Estimate, Moments

MEAN, DEVIATION = 3.0, 2.0


def batches(number, count, channels):
    return MEAN + DEVIATION * torch.randn(number, count, channels, dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_a_healthy_layer_is_off_by_what_its_momentum_and_batches_leave(momentum):
    """Over 2,000 channels: the root mean square of both distances is 1/√(effective size)."""
    torch.manual_seed(0)
    count = 64
    layer = nn.BatchNorm1d(2000, momentum=momentum).double().train()
    for x in batches(60, count, 2000):
        layer(x)
    truth = Moments(
        torch.full((2000,), MEAN, dtype=torch.float64),
        torch.full((2000,), DEVIATION**2, dtype=torch.float64),
    )
    running = Moments(layer.running_mean, layer.running_var)
    expected = 1 / math.sqrt(effective_sample_size(layer, count))
    assert standardized_distance(running, truth, 0.0) == pytest.approx(expected, rel=0.06)


def test_means_and_variances_count_alike_and_nan_stays_nan():
    here = Moments(torch.zeros(3), torch.full((3,), 4.0))
    moved = Moments(torch.full((3,), 0.5), torch.full((3,), 4.0))
    wider = Moments(torch.zeros(3), torch.full((3,), 4.0 * math.exp(0.25 * math.sqrt(2))))
    assert standardized_distance(moved, here, 0.0) == pytest.approx(0.25)
    assert standardized_distance(wider, here, 0.0) == pytest.approx(0.25)
    bad = Moments(torch.full((3,), math.nan), torch.full((3,), 4.0))
    assert math.isnan(standardized_distance(bad, here, 0.0))
    assert not is_usable(bad)
    assert not is_usable(Moments(torch.zeros(1), -torch.ones(1)))


def test_batches_that_differ_more_than_samples_raise_the_noise_floor():
    """A loader whose batches have means of their own; by theory alone it would be 0.029."""
    torch.manual_seed(0)
    layer, stats, spread = nn.BatchNorm1d(50), LayerStats(64), 0.5
    for index in range(20):
        x = torch.randn(64, 50, dtype=torch.float64) + spread * torch.randn(50)
        stats.add(index, x.mean(0), x.var(0))
    theory = 1 / math.sqrt(effective_sample_size(layer, 64))
    expected = math.sqrt(spread**2 + 1 / 64) * math.sqrt(0.1 / 1.9 + 1 / 20)
    assert theory == pytest.approx(0.0287, abs=1e-4)
    assert noise_floor(layer, stats) == pytest.approx(expected, rel=0.1)


def test_what_chance_explains_follows_from_how_many_channels_are_independent():
    """Channels that go together leave one number to be off by chance: twice the noise is common."""
    torch.manual_seed(0)
    layer, batches, tries, p = nn.BatchNorm1d(8), 8, 300, 0.02
    by_chance = twice = 0
    for _ in range(tries):
        shared = torch.randn(batches + 1, 1, dtype=torch.float64)
        means = 0.3 * (shared + 0.2 * torch.randn(batches + 1, 8, dtype=torch.float64))
        variances = 1 + 0.01 * torch.randn(batches + 1, 8, dtype=torch.float64)
        stats = LayerStats(64)
        for index in range(batches):
            stats.add(index, means[index], variances[index])
        running = Moments(math.sqrt(0.1 / 1.9) * means[-1], torch.ones(8, dtype=torch.float64))
        distance = standardized_distance(running, stats.average(), layer.eps)
        by_chance += distance > largest_by_chance(layer, stats, p)
        twice += distance > 2 * noise_floor(layer, stats)
    assert by_chance <= 2 * p * tries
    assert twice > 0.04 * tries


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_statistics_lag_as_those_of_weights_whose_learning_rate_falls_to_0(momentum):
    """Against averages that follow such weights from 1, in standard deviations, to 0."""
    steps, layer = 500, nn.BatchNorm1d(1, momentum=momentum).double()
    for step in range(steps):
        left = (1 - (step + 1) / steps) ** 2
        layer(torch.tensor([[left - 1], [left + 1]], dtype=torch.float64))
    assert float(layer.running_mean) == pytest.approx(expected_lag(layer), rel=0.02)
    layer.num_batches_tracked.zero_()
    assert expected_lag(layer) == 0


@pytest.mark.parametrize(
    ("value", "error", "clear"),
    [(1.2, 0.01, True), (1.2, 0.06, False), (1.04, 0.001, False), (math.nan, 0.0, False)],
)
def test_a_ratio_is_clear_beyond_its_error_and_what_matters(value, error, clear):
    assert is_clear(Estimate(value, error)) is clear
