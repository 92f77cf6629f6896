"""Noise and BN switched each for itself, and everything put back."""

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.networks.build import build
from vshift.networks.noise import ClassicDropout, Dropout, Gaussian, as_noise
from vshift.networks.norm import BatchNorm
from vshift.shift.modes import (
    batch_statistics,
    bn_state,
    is_off,
    load_bn_state,
    modes,
    noise_modules,
    restoring_state,
    seeded,
)


def net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.5), norm(4), nn.ReLU(), Gaussian(0.5), nn.Conv2d(4, 2, 3)
    )
    model[2].running_mean.fill_(0.3)
    model[2].running_var.fill_(1.7)
    model[3].eval()
    return model


def everything(model):
    """All that must not change, as values that compare with ==."""
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    return (
        {name: tensor.tolist() for name, tensor in tensors.items()},
        {name: id(tensor) for name, tensor in tensors.items()},
        [m.training for m in model.modules()],
        [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
    )


def images(size=8, seed=0):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_noise_modules_are_ours_and_those_of_torch():
    model = nn.Sequential(
        Dropout(1.0), nn.Dropout2d(), nn.Sequential(nn.AlphaDropout()), nn.Identity()
    )
    assert list(noise_modules(model)) == ["0", "1", "2.0"]


def test_noise_of_strength_0_is_off():
    for make in (nn.Dropout, nn.Dropout2d, ClassicDropout, Dropout, Gaussian):
        assert is_off(make(0.0))
        assert not is_off(make(0.5))
    assert not is_off(as_noise(nn.Identity()))  # somebody's, which does not tell


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("noise", [True, False])
def test_modes_switches_each_and_nothing_else(noise, norm):
    model = net()
    with modes(model, noise=noise, norm=norm):
        on = [name for name, module in model.named_modules() if module.training]
    assert on == ["1"] * noise + ["2"] * (norm == "batch") + ["4"] * noise


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm, nn.SyncBatchNorm])
def test_batch_mode_normalises_with_the_batch_and_keeps_the_buffers(norm):
    model = net(norm)
    before = everything(model)
    x = images()
    with modes(model, noise=False, norm="batch"), torch.no_grad():
        output = model[2](model[0](x))
    assert everything(model) == before
    flat = output.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(flat.mean(1), torch.zeros(4).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(flat.var(1, correction=0), torch.ones(4).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "context", [lambda m: modes(m, noise=True, norm="batch"), batch_statistics]
)
def test_everything_is_restored_after_an_error(context):
    model = net()
    before = everything(model)

    def work():
        with context(model):
            model(images())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert everything(model) == before


def test_modes_refuses_another_word():
    with (
        pytest.raises(ValueError, match="batch, training or running"),
        modes(net(), noise=True, norm="own"),
    ):
        pass


def test_layers_without_running_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    with modes(model, noise=False, norm="batch"):
        assert [m.training for m in model] == [False, True]
    assert list(bn_state(model)) == ["1.running_mean", "1.running_var"]


@torch.no_grad()
def test_own_0_is_plain_eval_and_own_1_is_batch_mode():
    model, x = net(), images()
    with modes(model, noise=False, norm="running"):
        plain = model(x)
    with modes(model, noise=False, norm="batch"):
        batch = model(x)
    with batch_statistics(model, batch_weight=0):
        assert torch.equal(model(x), plain)
    with batch_statistics(model):
        torch.testing.assert_close(model(x), batch, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm, nn.SyncBatchNorm])
def test_a_mix_of_moments_by_hand(norm):
    model, x, own = net(norm), images(), 0.3
    inner = model[0](x).double()
    mean = own * inner.mean((0, 2, 3)) + (1 - own) * 0.3
    second = own * inner.square().mean((0, 2, 3)) + (1 - own) * (1.7 + 0.3**2)
    variance = (second - mean**2 + model[2].eps)[:, None, None]
    with batch_statistics(model, own):
        found = model[2](model[0](x))
    wanted = (inner - mean[:, None, None]) / variance.sqrt()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_value_per_channel_gives_the_bias_on_its_own_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3))
    nn.init.constant_(model[0].bias, 0.25)
    with batch_statistics(model):
        # PyTorch multiplies by 1/√eps before it subtracts the mean.
        torch.testing.assert_close(
            model(torch.randn(1, 3)), torch.full((1, 3), 0.25), rtol=0, atol=1e-3
        )
    with modes(model, noise=False, norm="batch"), pytest.raises(ValueError, match="more than 1"):
        model(torch.randn(1, 3))


@pytest.mark.parametrize("own", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(own):
    with pytest.raises(ValueError, match="between 0 and 1"), batch_statistics(net(), own):
        pass


def test_bn_state_is_a_copy_and_comes_back():
    model = net()
    state = bn_state(model)
    model[2].running_var.fill_(9.0)
    assert state["2.running_var"].tolist() == pytest.approx([1.7] * 4)
    buffer = model[2].running_var
    load_bn_state(model, state)
    assert model[2].running_var is buffer
    assert torch.equal(buffer, state["2.running_var"])


def test_bn_state_of_a_model_that_is_a_bn_layer():
    layer = nn.BatchNorm1d(3)
    state = bn_state(layer)
    assert list(state) == ["running_mean", "running_var"]
    load_bn_state(layer, {name: tensor + 1 for name, tensor in state.items()})
    assert layer.running_var.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"9.running_var": torch.ones(4)}, "unknown 9.running_var"),
        ({"2.running_var": torch.ones(5)}, r"2.running_var is \[5\], not \[4\]"),
        ({"2.running_var": None}, "lacks 2.running_var"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change, message):
    model = net()
    before = everything(model)
    state = {name: tensor + 1 for name, tensor in bn_state(model).items()} | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load_bn_state(model, state)
    assert everything(model) == before


def test_seeded_repeats_and_restores():
    model = net()
    state = torch.random.get_rng_state()
    with seeded(model, 3):
        first = torch.rand(4)
    with seeded(model, 3):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_told_to_test_on_batch_statistics_obeys_the_modes():
    from vshift.networks.norm import BatchNorm

    layer = BatchNorm(3, evaluate="batch")
    model, x = nn.Sequential(layer).eval(), torch.randn(16, 3) * 5
    with modes(model, noise=False, norm="running"):
        torch.testing.assert_close(model(x), x / (1 + layer.eps) ** 0.5)
    assert layer.evaluate == "batch"
    assert model(x).std().item() == pytest.approx(1, abs=0.05)


def small_net(noise=None):
    network = {"name": "preresnet", "depth": 8, **({"noise": noise} if noise else {})}
    return build(make_config(network=network), classes=10, channels=3, size=16, seed=0)


def test_restoring_state_restores_buffers_modes_and_random_numbers_even_after_an_error():
    model = small_net({"kind": "dropout", "rate": 0.5, "position": "before_last_bn"})
    model.stage2.eval()
    modes = [m.training for m in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()

    def work():
        with restoring_state(model):
            model.train()
            model(torch.randn(8, 3, 16, 16))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
