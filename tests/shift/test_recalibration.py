"""Re-estimated BN statistics against float64 by hand, update_bn and fvcore's precise BN."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

from tests.configs import make_config
from tests.shift.test_modes import everything
from vshift.networks.build import build
from vshift.shift.modes import bn_state, load_bn_state, modes
from vshift.shift.recalibration import estimate_statistics, recalibrate
from vshift.shift.stats import batch_norms, pooled_moments, shift_ratio

METHODS = ("swap", "precise", "layerwise", "dropout_on")
DROPOUT = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}


def images(sizes=(16, 16, 7), seed=0, side=8):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, side, side, generator=g) + i / 2 for i, size in enumerate(sizes)]


def plain_net(dropout=0.5):
    """Two BN layers, noise in front of the second; statistics far from what they meet."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    )
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    model[1].running_var.fill_(3.0)
    return model


@pytest.fixture(scope="module")
def trained():
    """A small PreResNet after a few steps with dropout before each block's last BN."""
    network = {"name": "preresnet", "depth": 14, "noise": DROPOUT}
    model = build(make_config(network=network), classes=10, channels=3, size=16, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for _ in range(30):
        labels = torch.randint(10, (32,), generator=g)
        pixels = torch.randn(32, 3, 16, 16, generator=g) + labels[:, None, None, None] / 5
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    return model


def ratios(model, batches):
    with modes(model, noise=False, norm="running"):
        met = pooled_moments(model, lambda: batches)
    layers = batch_norms(model)
    return {n: shift_ratio(layers[n].running_var, p.variance) for n, p in met.items()}


def close(found, wanted, rtol=1e-5):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=rtol, atol=1e-6, msg=name)


def set_of(layers):
    """{name: joined input} → the state that holds their pooled statistics, by hand."""
    state = {}
    for name, x in layers.items():
        state[f"{name}.running_mean"] = x.double().mean((0, 2, 3)).float()
        state[f"{name}.running_var"] = x.double().var((0, 2, 3), correction=1).float()
    return state


@torch.no_grad()
def test_swap_measures_behind_the_old_statistics():
    model, batches = plain_net().eval(), images()
    first = model[0](torch.cat(batches))
    second = model[4](model[2](model[1](first)))
    close(estimate_statistics(model, lambda: batches, "swap"), set_of({"1": first, "5": second}))


@torch.no_grad()
def test_layerwise_measures_behind_the_new_statistics():
    model, batches = plain_net().eval(), images()
    first = model[0](torch.cat(batches))
    variance, mean = torch.var_mean(first, (0, 2, 3), correction=1)
    normed = F.batch_norm(first, mean, variance, model[1].weight, model[1].bias)
    second = model[4](F.relu(normed))
    close(
        estimate_statistics(model, lambda: batches, "layerwise"), set_of({"1": first, "5": second})
    )


@torch.no_grad()
def test_precise_measures_behind_batch_statistics():
    model, batches = plain_net().eval(), images()
    first = [model[0](batch) for batch in batches]
    weight, bias = model[1].weight, model[1].bias
    normed = [F.batch_norm(x, None, None, weight, bias, training=True) for x in first]
    second = [model[4](F.relu(x)) for x in normed]
    wanted = set_of({"1": torch.cat(first), "5": torch.cat(second)})
    close(estimate_statistics(model, lambda: batches, "precise"), wanted)


def test_the_methods_agree_on_the_first_layer_and_differ_behind_it(trained):
    batches = images(side=16)
    states = [estimate_statistics(trained, lambda: batches, method) for method in METHODS]
    first, *_, last = batch_norms(trained)
    for one, other in pairwise(states):
        close(*({n: s[n] for n in s if n.startswith(f"{first}.")} for s in (one, other)))
        assert not torch.allclose(one[f"{last}.running_var"], other[f"{last}.running_var"])


def test_layerwise_leaves_no_shift_and_dropout_on_leaves_it(trained):
    batches, before = images(side=16), bn_state(trained)
    found = {}
    for method in METHODS:
        recalibrate(trained, lambda: batches, method)
        found[method] = max(ratios(trained, batches).values())
        load_bn_state(trained, before)
    assert found["layerwise"] < 1.001
    assert found["dropout_on"] > 1.2


def test_all_at_once_equals_layer_by_layer(trained):
    batches = images(side=16)
    for estimator in ("pooled", "average"):
        options = {"estimator": estimator, "moments": "both"}
        one_by_one = estimate_statistics(trained, lambda: batches, "layerwise", **options)
        at_once = estimate_statistics(
            trained, lambda: batches, "layerwise", at_once=True, **options
        )
        close(at_once, one_by_one, rtol=1e-4)


def test_layer_by_layer_stops_at_the_layer_that_is_measured():
    model, batches, calls = plain_net(), images(), []
    model[4].register_forward_pre_hook(lambda *_: calls.append(1))
    estimate_statistics(model, lambda: batches, "layerwise")
    # Once to find the order, not at all for the first layer, three batches for the second.
    assert len(calls) == 1 + 0 + 3


def test_all_at_once_where_the_model_folds_patches_into_the_batch():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8))

        def forward(self, x):
            return self.norms(x.reshape(-1, 8))

    model, batches = Folded(), images()
    options = {"method": "layerwise", "estimator": "average"}
    wanted = estimate_statistics(model, lambda: batches, **options)
    close(estimate_statistics(model, lambda: batches, at_once=True, **options), wanted)


def test_with_one_bn_layer_all_methods_without_noise_agree():
    model, batches = plain_net()[:2], images()
    wanted = estimate_statistics(model, lambda: batches, "precise")
    for method in ("swap", "layerwise"):
        close(estimate_statistics(model, lambda: batches, method), wanted)


def test_dropout_on_is_update_bn():
    model, batches = plain_net(), images()
    torch.manual_seed(5)
    found = estimate_statistics(model, lambda: batches, "dropout_on", estimator="average")
    torch.manual_seed(5)
    update_bn(batches, model)
    close(found, bn_state(model))


def test_precise_is_fvcores_up_to_the_bias():
    """fvcore pools as well, but writes the BIASED variance: n/(n − 1) lies between."""
    precise_bn = pytest.importorskip("fvcore.nn.precise_bn")
    model, batches = plain_net(), images()
    found = estimate_statistics(model, lambda: batches, "precise")
    for name, side in (("1", 6), ("5", 4)):
        count = sum(map(len, batches)) * side * side
        found[f"{name}.running_var"] *= (count - 1) / count
    model[3].eval()  # fvcore leaves the modes to its caller
    precise_bn.update_bn_stats(model, batches, num_iters=3)
    close(found, bn_state(model))


def test_average_leaves_out_the_spread_between_batch_means():
    batches = [torch.randn(50, 3) + 10 * i for i in range(2)]
    model = nn.Sequential(nn.BatchNorm1d(3))
    recalibrate(model, lambda: batches, "swap", estimator="average")
    assert model[0].running_var.max() < 3
    recalibrate(model, lambda: batches, "swap", estimator="pooled")
    assert model[0].running_var.min() > 20


def test_moments_variance_leaves_the_means():
    model, batches = plain_net(), images()
    before = bn_state(model)
    recalibrate(model, lambda: batches, "layerwise", moments="variance")
    after = bn_state(model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"1.running_var", "5.running_var"}
    assert max(ratios(model, batches).values()) < 1.001


def test_limit_uses_the_first_batches():
    model, batches = plain_net(), images()
    for method in ("swap", "precise", "layerwise"):
        wanted = estimate_statistics(model, lambda: batches[:2], method)
        close(estimate_statistics(model, lambda: iter(batches), method, limit=2), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_running_statistics_change(method, trained):
    torch.manual_seed(0)
    trained.train()
    trained.stage2.eval()
    before, state = everything(trained), torch.random.get_rng_state()
    momenta = [layer.momentum for layer in batch_norms(trained).values()]

    def batches():
        return [torch.rand(8, 3, 16, 16) for _ in range(2)]  # draws from the global generator

    kept = bn_state(trained)
    recalibrate(trained, batches, method)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert momenta == [layer.momentum for layer in batch_norms(trained).values()]
    assert all(not torch.equal(new, kept[name]) for name, new in bn_state(trained).items())
    load_bn_state(trained, kept)
    assert everything(trained) == before


@pytest.mark.parametrize("method", METHODS)
def test_an_error_midway_leaves_the_model_as_it_was(method):
    model = plain_net()
    batches = [*images(), torch.ones(4, 9, 8, 8)]
    before, state = everything(model), torch.random.get_rng_state()
    with pytest.raises(RuntimeError):
        recalibrate(model, lambda: batches, method)
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", ["swap", "layerwise"])
def test_single_images_pool_in_eval_mode(method):
    model = nn.Sequential(nn.BatchNorm1d(3))
    x = torch.randn(20, 3)
    recalibrate(model, lambda: x.split(1), method)
    torch.testing.assert_close(model[0].running_var, x.var(0), rtol=1e-5, atol=0)


def test_single_values_have_no_batch_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3))
    single = torch.randn(20, 3).split(1)
    with pytest.raises(ValueError, match="more than 1 value"):
        recalibrate(model, lambda: single, "precise")
    with pytest.raises(ValueError, match="no finite statistics over 20 values"):
        recalibrate(model, lambda: single, "swap", estimator="average")


def test_statistics_that_are_not_finite_are_refused():
    model = plain_net()
    before = everything(model)
    with pytest.raises(ValueError, match="'1' has no finite statistics"):
        recalibrate(model, lambda: [torch.full((4, 3, 8, 8), torch.nan)], "layerwise")
    assert everything(model) == before


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_no_batches_and_no_bn_are_errors(method, at_once):
    with pytest.raises(ValueError, match="no batches"):
        recalibrate(plain_net(), list, method, at_once=at_once)
    with pytest.raises(ValueError, match="no BN layer that keeps"):
        recalibrate(nn.Linear(3, 3), lambda: images(), method, at_once=at_once)


def test_batches_that_run_dry_are_noticed():
    supply = iter(images())
    with pytest.raises(ValueError, match="no batches"):
        recalibrate(plain_net(), lambda: supply, "layerwise")


@pytest.mark.parametrize("at_once", [False, True])
def test_layerwise_refuses_a_layer_that_runs_twice(at_once):
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm)
    with pytest.raises(ValueError, match="'0' runs several times"):
        recalibrate(model, lambda: [torch.randn(5, 3)], "layerwise", at_once=at_once)


@pytest.mark.parametrize("wrong", [{"method": "swa"}, {"moments": "mean"}, {"estimator": "median"}])
def test_unknown_words_are_refused_with_the_choices(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is one of .*, not '{wrong[name]}'"):
        recalibrate(plain_net(), lambda: images(), **wrong)


def test_under_autocast_statistics_are_those_of_the_input_as_it_arrives():
    model, batches = plain_net(), images()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = model[0](torch.cat(batches))
        found = estimate_statistics(model, lambda: batches, "swap")
    assert first.dtype == torch.bfloat16
    close({n: found[n] for n in ("1.running_mean", "1.running_var")}, set_of({"1": first}))
