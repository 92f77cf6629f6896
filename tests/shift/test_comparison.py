"""Lag and shift told apart, and every number of a comparison against float64 by hand."""

import math

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.data import load
from vshift.networks.noise import Dropout
from vshift.networks.norm import BatchNorm
from vshift.runs import RunFolder
from vshift.shift.comparison import compare_passes, run_passes
from vshift.shift.modes import bn_state
from vshift.shift.sites import bn_sites
from vshift.train.run import train_one


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.layers = []

    def epoch(self, row, layers):
        self.layers.append(layers)

    def __getattr__(self, name):
        return lambda *_: None


def images(count=8, size=64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) + 1 for _ in range(count)]


def network(rate=0.0, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), BatchNorm(8), nn.ReLU(), Dropout(rate), nn.Linear(8, 5)]
    return nn.Sequential(*layers, BatchNorm(5), nn.ReLU(), nn.Linear(5, 3))


def compared(model, batches):
    sites = bn_sites(model)
    return compare_passes(sites, run_passes(model, lambda: batches, sites))


def trained_statistics(model, batches, momentum=None):
    """Running statistics as training leaves them, with weights that do not move."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.momentum = momentum
            module.reset_running_stats()
    torch.manual_seed(5)
    with torch.no_grad():
        for batch in batches:
            model.train()(batch)
    return model


def test_every_number_is_that_of_plain_hooks_in_float64():
    model, batches = trained_statistics(network(), images(), momentum=0.3).double(), images()
    batches = [batch.double() for batch in batches]
    found = compared(model, batches)

    def inputs(mode):
        seen = {"1": [], "5": []}
        hooks = [
            model[int(name)].register_forward_pre_hook(
                lambda _, args, name=name: seen[name].append(args[0].detach())
            )
            for name in seen
        ]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            for batch in batches:
                model.train(mode)(batch)
        model.load_state_dict(before)
        for hook in hooks:
            hook.remove()
        return seen

    train, eval_ = inputs(True), inputs(False)
    fresh = {
        name: (
            torch.stack([x.mean(0) for x in xs]).mean(0),
            torch.stack([x.var(0) for x in xs]).mean(0),
        )
        for name, xs in train.items()
    }
    running = {
        name: (model[int(name)].running_mean, model[int(name)].running_var) for name in fresh
    }
    saved = {name: [t.clone() for t in pair] for name, pair in running.items()}
    for name in fresh:
        for own, new in zip(running[name], fresh[name], strict=True):
            own.copy_(new)
    settled = inputs(False)
    for name, pair in saved.items():
        mean, variance = pair
        x, y, z = (
            torch.stack([b.var(0) for b in kind[name]]).mean(0).mean()
            for kind in (train, eval_, settled)
        )
        one = found[name]
        assert one.lag.value == pytest.approx(float(x / variance.mean()), rel=1e-5)
        assert one.lag_free.value == pytest.approx(float(max(z / x, x / z)), rel=1e-5)
        assert one.ratio.value == pytest.approx(float(max(x / y, y / x)), rel=1e-5)
        means = [torch.stack([b.mean(0) for b in kind[name]]).mean(0) for kind in (train, eval_)]
        shift = ((means[0] - means[1]).abs() / fresh[name][1].sqrt()).mean()
        assert one.mean_shift.value == pytest.approx(float(shift), abs=1e-7)
        norm = variance.sqrt().norm()
        tid = [
            torch.stack([(b.mean(0) - mean).norm() / norm for b in train[name]]).mean(),
            torch.stack([(b.std(0) - variance.sqrt()).norm() / norm for b in train[name]]).mean(),
        ]
        assert one.mean_tid == pytest.approx(float(tid[0]), rel=1e-5)
        assert one.variance_tid == pytest.approx(float(tid[1]), rel=1e-5)


def test_the_discrepancy_of_independent_batches_is_that_of_theory():
    """‖μ_B − μ‖ is σ√(C/n)·(chi of C degrees of freedom)/√C, the other about 1/√2 of it."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(100, 400, generator=generator) for _ in range(20)]
    layer = BatchNorm(400)
    layer.running_var.fill_(1.0)
    sites = bn_sites(model := nn.Sequential(layer))
    found = compare_passes(sites, run_passes(model, lambda: batches, sites))["0"]
    assert found.mean_tid == pytest.approx(0.1, rel=0.02)
    assert found.variance_tid == pytest.approx(1 / math.sqrt(2 * 99), rel=0.02)


def test_old_statistics_are_lag_also_in_the_layers_behind():
    """The second layer's own average is right; its input in eval mode is not."""
    model, batches = trained_statistics(network(), images()), images()
    model[1].running_var *= 4
    found = compared(model, batches)
    assert found["1"].lag.value == pytest.approx(0.25, rel=0.01)
    assert found["5"].lag.value == pytest.approx(1, rel=0.01)
    assert found["5"].ratio.value > 2
    for layer in found.values():
        assert layer.lag_free.value == pytest.approx(1, abs=0.02)
        assert layer.cause == "lag"


def test_noise_is_shift_and_settled_statistics_have_no_lag():
    model = trained_statistics(network(rate=0.5), images(40))
    found = compared(model, images(16))
    assert found["1"].cause is None  # no noise before it
    assert found["1"].lag_free.value == pytest.approx(1, abs=1e-4)
    assert found["5"].cause == "shift"
    assert found["5"].lag_free.value > 1.3
    assert found["5"].lag.value == pytest.approx(1, abs=0.05)


def test_one_batch_has_no_standard_error_and_no_cause():
    model = trained_statistics(network(rate=0.5), images(40))
    found = compared(model, images(1))
    assert all(layer.cause is None for layer in found.values())
    assert math.isnan(found["5"].lag_free.error)


def test_the_passes_change_nothing():
    model, batches = trained_statistics(network(rate=0.5), images(40)), images(2)
    before, state = bn_state(model), torch.get_rng_state()
    compared(model, batches)
    assert all(torch.equal(before[key], value) for key, value in bn_state(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_lag_of_sampling_noise_alone_is_none_of_the_causes():
    """Settled weights, no noise: in 30 draws of a moving average of 19 batches."""
    causes = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(32, 6, generator=generator) for _ in range(80)]
        model = trained_statistics(network(), drawn[:60], momentum=0.1)
        causes.append(compared(model, drawn[60:])["1"].cause)
    assert sum(cause is not None for cause in causes) <= 2


def trained(tmp_path, **sections):
    config = make_config(**sections)
    reporter = Silent()
    images_ = load(config.data, torch.device("cpu"))
    assert train_one(config, 0, images_, tmp_path, False, reporter) == "done"
    folder = RunFolder(tmp_path / "test" / "seed-0")
    last = [row for row in folder.layers() if row["epoch"] == config.epochs]
    return folder, last, reporter.layers[-1]


def test_a_network_without_noise_lags_after_50_steps(tmp_path):
    network = {"name": "mlp", "widths": [16, 16]}
    data = {"name": "shapes", "train": 3200, "test": 50, "batch_size": 64}
    _, rows, summary = trained(tmp_path, network=network, data=data, epochs=1)
    assert summary["shift_ratio_mean"] > 1.05
    assert summary["shift_ratio_cause"] == "lag"
    assert summary["lag_free_ratio_mean"] < 1.02
    assert all(row["cause"] != "shift" for row in rows)


def test_a_network_with_dropout_is_shifted_after_2000_steps(tmp_path):
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_bn"}
    _, rows, summary = trained(
        tmp_path,
        network={"name": "mlp", "widths": [16, 16], "noise": noise},
        data={"name": "shapes", "train": 1600, "test": 50, "batch_size": 16},
        epochs=20,
        measure={"eval_batches": 30},
    )
    assert summary["shift_ratio_cause"] == "shift"
    assert [row["cause"] for row in rows] == ["shift", "shift"]
    assert all(row["lag_free_ratio"] > 1.3 for row in rows)
