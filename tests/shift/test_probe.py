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
    input_moments,
    preserved,
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


def test_input_moments_are_those_of_the_bn_inputs_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    model[1].running_var.fill_(2.0)
    batches = [torch.randn(6, 3, 8, 8) for _ in range(3)]
    model.eval()
    found = input_moments(model, batches)
    with torch.no_grad():
        first = [model[0](b) for b in batches]
        second = [model[2](model[1](x)) for x in first]
    for name, inputs in {"1": first, "3": second}.items():
        variance = torch.stack([x.double().var((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(found[name].variance, variance, rtol=1e-5, atol=0)
        mean = torch.stack([x.double().mean((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(found[name].mean, mean, rtol=1e-5, atol=1e-6)


def test_input_moments_leave_no_hook_and_no_trace():
    model = small_net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    input_moments(model, [torch.randn(4, 3, 16, 16)])
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_hooks_go_even_if_the_model_fails():
    model = small_net()
    with pytest.raises(RuntimeError):
        input_moments(model, [torch.randn(4, 7, 16, 16)])
    assert not any(m._forward_pre_hooks for m in model.modules())


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
