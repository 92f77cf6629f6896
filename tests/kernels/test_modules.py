"""A fused network against the same network with PyTorch's operations."""

import copy

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.kernels import fuse
from vshift.kernels.modules import FusedBatchNorm
from vshift.networks.build import build
from vshift.networks.norm import BatchNorm
from vshift.shift.modes import bn_state
from vshift.shift.noise_graph import noise_in_front


def pair(**sections):
    """A network, and a fused copy of it."""
    plain = build(make_config(**sections), classes=10, channels=3, size=32, seed=0)
    plain = plain.to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse(fused)
    return plain, fused


def images(count=8):
    torch.manual_seed(3)
    return torch.randn(count, 3, 32, 32).to(memory_format=torch.channels_last)


NETWORKS = {
    "preresnet": {"name": "preresnet", "depth": 8},
    "bottleneck": {"name": "preresnet", "depth": 11, "bottleneck": True},
    "wrn": {"name": "wrn", "depth": 10, "width": 1},
    "resnet": {"name": "resnet", "depth": 8},
    "resnext": {"name": "resnext", "depth": 11, "cardinality": 2, "base_width": 4},
    "densenet": {"name": "densenet", "depth": 10, "growth_rate": 6},
    "vgg": {"name": "vgg", "depth": 11, "width": 0.125},
    "mlp": {"name": "mlp", "widths": [20, 30]},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_same_within_rounding(name):
    plain, fused = pair(network=NETWORKS[name])
    results = []
    for model in (plain, fused):
        model.train()
        output = model(images())
        output.square().sum().backward()
        grads = {k: p.grad for k, p in model.named_parameters()}
        model.eval()
        with torch.no_grad():
            results.append((output.detach(), bn_state(model), model(images()), grads))
    torch.testing.assert_close(results[1][:3], results[0][:3], rtol=1e-3, atol=1e-3)
    for key, grad in results[0][3].items():
        difference = (results[1][3][key] - grad).norm() / (grad.norm() + 1e-3)
        # One value next to zero on the other side of a ReLU is 0.5 %.
        assert difference < 1e-2, key


@pytest.mark.parametrize("name", NETWORKS)
def test_names_parameters_and_layout_stay(name):
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    if name != "mlp":
        network = {**NETWORKS[name], "noise": noise}
    else:
        network = {**NETWORKS[name], "noise": {**noise, "position": "before_bn"}}
    plain, fused = pair(network=network)
    assert plain.state_dict().keys() == fused.state_dict().keys()
    assert noise_in_front(plain) == noise_in_front(fused)


def test_relu_is_joined_only_where_it_follows_bn():
    _, fused = pair(network={"name": "resnet", "depth": 8})
    joined = [name for name, m in fused.named_modules() if isinstance(m, FusedBatchNorm) and m.relu]
    left = [name for name, m in fused.named_modules() if isinstance(m, nn.ReLU)]
    assert joined == ["stem.bn1", *(f"stage{i}.block1.branch.bn1" for i in (1, 2, 3))]
    assert left == [f"stage{i}.block1.exit" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "norm",
    [
        {"kind": "batch", "ghost": 4},
        {"kind": "batch", "eval_statistics": "batch"},
        {"kind": "batch", "update_running_stats": False},
        {"kind": "batch", "affine": False},
        {"kind": "batch", "momentum": None},
        {"kind": "batch", "freeze_after": 1},
        {"kind": "renorm", "plain_steps": 0, "rmax_steps": 1, "dmax_steps": 1},
        {"kind": "layer"},
        {"kind": "rms"},
        {"kind": "group", "groups": 4},
    ],
)
def test_every_kind_of_norm(norm):
    plain, fused = pair(norm=norm)
    for model in (plain, fused):
        model.train()(images())
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.enter_epoch(2)
        model.train()(images())
    torch.testing.assert_close(bn_state(fused), bn_state(plain), rtol=1e-3, atol=1e-4)
    for model in (plain, fused):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), plain(images()), rtol=1e-3, atol=1e-3)


def test_eval_mode_has_a_gradient():
    """The kernel for eval mode has none: with gradients on, PyTorch's operations do it."""
    plain, fused = pair()
    grads = []
    for model in (plain, fused):
        x = images().requires_grad_()
        model.eval()(x).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("kind", ["dropout", "gaussian", "uniform", "classic_dropout",
                                  "scaled_dropout"])  # fmt: skip
def test_noise_by_kernel_has_mean_and_variance_of_the_readable_one(kind):
    noise = {"kind": kind, "rate": 0.3, "position": "before_last_bn"}
    plain, fused = pair(network={"name": "preresnet", "depth": 8, "noise": noise})
    x = torch.full((64, 16, 32, 32), 1.0).to(memory_format=torch.channels_last)
    values = []
    for model in (plain, fused):
        torch.manual_seed(0)
        values.append(model.train().get_submodule("stage1.block1.branch.noise1")(x).double())
    count = x.numel()
    spread = float(values[0].std())
    assert float(values[1].mean() - values[0].mean()) == pytest.approx(
        0, abs=6 * spread / count**0.5
    )
    assert float(values[1].var()) == pytest.approx(float(values[0].var()), rel=0.01)
    assert not torch.equal(values[0], values[1])  # the kernel was used


def test_channelwise_noise_stays_with_pytorch():
    noise = {"kind": "dropout", "rate": 0.5, "unit": "channel", "position": "before_last_bn"}
    plain, fused = pair(network={"name": "preresnet", "depth": 8, "noise": noise})
    outputs = []
    for model in (plain, fused):
        torch.manual_seed(0)
        outputs.append(model.train()(images()).detach())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)


def test_one_value_a_channel_is_refused_as_pytorch_does():
    _, fused = pair(network={"name": "mlp", "widths": [20]})
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused.train()(images(1))
