"""What the probe measures, against float64 by hand, and that it leaves no trace."""

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.networks import build
from vshift.networks.norm import BatchNorm
from vshift.shift.probe import (
    TrainingLog,
    batch_norms,
    preserved,
    ratio_error,
    running_moments,
    shift_ratio,
)


def small_net(noise=None):
    network = {"name": "preresnet", "depth": 8, **({"noise": noise} if noise else {})}
    return build(make_config(network=network), classes=10, channels=3, size=16, seed=0)


def test_training_log_averages_the_unbiased_batch_variances():
    torch.manual_seed(0)
    layer = BatchNorm(5)
    model = nn.Sequential(layer)
    log = TrainingLog(model)
    batches = [torch.randn(size, 5, 4, 4) * (1 + i) + i for i, size in enumerate((8, 8, 3))]
    for batch in batches:
        model(batch)
        log.add()
    seen = log.take()["0"]
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
        seen = log.take()["0"].variance
        torch.testing.assert_close(seen, x.double().var(0), rtol=1e-5, atol=0)


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


def test_preserved_restores_buffers_modes_and_random_numbers_even_after_an_error():
    model = small_net({"kind": "dropout", "rate": 0.5, "position": "before_last_bn"})
    model.stage2.eval()
    modes = [m.training for m in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()

    def work():
        with preserved(model):
            model.train()
            model(torch.randn(8, 3, 16, 16))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


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
