"""Our batch norm against PyTorch's and by hand, its variants, and group norm."""

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.config.norm import BatchNorm as BatchNormConfig
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.norm import BatchNorm, make_norm
from vshift.networks.summary import summarise
from vshift.shift.modes import restoring_state
from vshift.shift.stats import TrainingLog


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, 0.0, None])
@pytest.mark.parametrize("shape", [(32, 8), (16, 8, 6, 6)])
def test_equals_torch_batch_norm_over_several_batches(momentum, shape):
    torch.manual_seed(0)
    ours = BatchNorm(8, momentum=momentum)
    reference = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(8, momentum=momentum)
    for _ in range(5):
        x = torch.randn(shape) * 3 + 2
        x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
        y1, y2 = ours(x1), reference(x2)
        torch.testing.assert_close(y1, y2)
        (y1**3).sum().backward()
        (y2**3).sum().backward()
        torch.testing.assert_close(x1.grad, x2.grad)
    for name, buffer in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


def test_its_state_dict_is_that_of_torch_batch_norm():
    assert list(BatchNorm(4).state_dict()) == list(nn.BatchNorm2d(4).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_statistics_against_float64(dtype, channels_last):
    """At mean/sd = 50 a naive E[x²] − E[x]² in float32 would be visibly wrong."""
    torch.manual_seed(0)
    x = (torch.randn(64, 8, 16, 16) * 0.5 + 25).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    layer = BatchNorm(8)
    layer(x)
    exact = x.double()
    torch.testing.assert_close(layer.batch_mean.double(), exact.mean((0, 2, 3)), rtol=1e-5, atol=0)
    unbiased = exact.var((0, 2, 3), correction=1)
    torch.testing.assert_close(layer.batch_var.double(), unbiased, rtol=1e-4, atol=0)


def test_buffers_stay_float32_under_autocast():
    layer = BatchNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(4, 8, 5, 5).bfloat16())
    assert {b.dtype for n, b in layer.named_buffers() if "batches" not in n} == {torch.float32}


def test_eval_mode_changes_no_buffer():
    layer = BatchNorm(8).eval()
    before = {name: b.clone() for name, b in layer.named_buffers()}
    layer(torch.randn(4, 8, 5, 5))
    assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())


def test_a_single_value_and_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        BatchNorm(8)(torch.randn(1, 8))
    with pytest.raises(ValueError, match=r"expected \[N, C\] or \[N, C, H, W\], got \[1, 8, 3\]"):
        BatchNorm(8)(torch.randn(1, 8, 3))


SHAPES = [(8,), (8, 6, 6)]


def batch(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # A drift over the images, so that groups differ.
    drift = torch.linspace(-2, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=generator) * (2 + drift) + drift


def by_hand(x, ghost):
    """Ghost batch norm by a fresh `torch.nn` layer for each group: output, means, variances."""
    outputs, means, variances = [], [], []
    for start in range(0, len(x), ghost):
        # With momentum 1 its running statistics are the group's mean and unbiased variance.
        layer = (nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d)(x.shape[1], momentum=1.0)
        outputs.append(layer(x[start : start + ghost]))
        means.append(layer.running_mean)
        variances.append(layer.running_var)
    return torch.cat(outputs), torch.stack(means), torch.stack(variances)


@pytest.mark.parametrize("images", [24, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_ghost_equals_a_loop_of_torch_batch_norms(images, shape):
    layer = BatchNorm(8, momentum=0.1, ghost=8)
    x1 = batch(images, *shape).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    y1, (y2, means, variances) = layer(x1), by_hand(x2, 8)
    torch.testing.assert_close(y1, y2)
    (y1**3).sum().backward()
    (y2**3).sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad)
    torch.testing.assert_close(layer.batch_mean, means.mean(0))
    torch.testing.assert_close(layer.batch_var, variances.mean(0))
    torch.testing.assert_close(layer.running_mean, 0.1 * means.mean(0))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variances.mean(0))
    assert layer.num_batches_tracked == 1


def test_ghost_with_a_cumulative_average_and_what_the_log_takes():
    model = nn.Sequential(BatchNorm(8, momentum=None, ghost=4))
    log, seen = TrainingLog(model), []
    for seed in range(3):
        x = batch(10, 8, 5, 5, seed=seed)
        model(x)
        log.add()
        seen.append(by_hand(x, 4)[2].mean(0))
    expected = torch.stack(seen).mean(0)
    torch.testing.assert_close(model[0].running_var, expected)
    torch.testing.assert_close(
        log.compute_and_reset()["0"].variance, expected.double(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("ghost", [16, 17, 1000])
def test_a_group_as_large_as_the_batch_is_plain_batch_norm(ghost):
    x = batch(16, 8, 4, 4)
    ours, plain = BatchNorm(8, ghost=ghost), BatchNorm(8)
    assert torch.equal(ours(x), plain(x))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=0, atol=0)


def test_groups_of_one_image_are_instance_norm_and_need_more_than_one_value():
    x = batch(6, 8, 5, 5)
    torch.testing.assert_close(BatchNorm(8, ghost=1)(x), nn.InstanceNorm2d(8)(x))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        BatchNorm(8, ghost=4)(batch(9, 8))


def test_ghost_in_low_precision_and_channels_last():
    layer = BatchNorm(8, ghost=4)
    x = batch(10, 8, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    _, means, variances = by_hand(x.float(), 4)
    torch.testing.assert_close(layer.batch_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.batch_var, variances.mean(0), rtol=1e-4, atol=0)


def test_measuring_leaves_a_ghost_layer_as_it_was():
    model = nn.Sequential(BatchNorm(8, ghost=4))
    model(batch(8, 8))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with restoring_state(model):
        model(batch(8, 8, seed=1))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("ghost", [None, 4])
def test_never_updated(ghost):
    """Training as ever; testing with mean 0 and variance 1."""
    layer, usual = BatchNorm(8, update=False, ghost=ghost), BatchNorm(8, ghost=ghost)
    x = batch(16, 8, 4, 4)
    assert torch.equal(layer(x), usual(x))
    fresh = BatchNorm(8).state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in layer.state_dict().items())
    assert torch.equal(layer.batch_var, usual.batch_var)
    torch.testing.assert_close(layer.eval()(x), x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ghost", [None, 5])
def test_evaluation_on_the_batch_equals_training_and_changes_no_buffer(shape, ghost):
    layer = BatchNorm(8, evaluate="batch", ghost=ghost)
    layer(batch(20, *shape, seed=1))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = batch(20, *shape)
    tested = layer.eval()(x)
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
    assert torch.equal(layer.train()(x), tested)
    if ghost is None:
        flat = tested.transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat.mean(1), torch.zeros(8), rtol=0, atol=1e-5)
        torch.testing.assert_close(flat.var(1, correction=0), torch.ones(8), rtol=1e-4, atol=0)


def test_no_option_changes_the_state_dict():
    layer = BatchNorm(4, ghost=2, update=False, evaluate="batch")
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(4).state_dict())
    assert repr(layer).endswith("ghost=2, update=False, evaluate=batch)")


def test_config_to_layer():
    norm = {"kind": "batch", "ghost": 16, "update_running_stats": False, "eval_statistics": "batch"}
    layer = make_norm(make_config(norm=norm).norm, 8)
    assert (layer.ghost, layer.update, layer.evaluate) == (16, False, "batch")
    plain = make_norm(BatchNormConfig(kind="batch"), 8)
    assert (plain.ghost, plain.update, plain.evaluate) == (None, True, "running")


def gn_net(norm, block="bn relu conv3x3 gn relu conv3x3", **network):
    config = make_config(
        network={"name": "preresnet", "depth": 8, "block": block, **network}, norm=norm
    )
    return build(config, classes=10, channels=3, size=16, seed=0)


def test_gn_replaces_one_bn_of_each_block():
    norm = {"kind": "batch", "gn_groups": 4, "eps": 1e-3, "scale_init": 1.5}
    model = gn_net(norm)
    branch = model.stage2.block1.branch
    assert [n for n, _ in branch.named_children()] == [
        "bn1", "relu1", "conv1", "gn1", "relu2", "conv2"
    ]  # fmt: skip
    assert isinstance(branch.bn1, BatchNorm)
    assert isinstance(branch.gn1, nn.GroupNorm)
    assert (branch.gn1.num_groups, branch.gn1.num_channels, branch.gn1.eps) == (4, 32, 1e-3)
    assert bool((branch.gn1.weight == 1.5).all())
    assert summarise(model, channels=3, size=16)["bn_layers"] == 4
    assert model(batch(4, 3, 16, 16)).shape == (4, 10)


def test_gn_with_the_other_kinds_of_norm():
    grouped = gn_net({"kind": "group", "groups": 2}).stage1.block1.branch
    assert (grouped.bn1.num_groups, grouped.gn1.num_groups) == (2, 2)
    assert isinstance(gn_net({"kind": "none"}).stage1.block1.branch.gn1, nn.Identity)


def test_gn_first_in_a_wide_residual_block_stays_before_its_projection():
    model = gn_net({"kind": "batch"}, "gn relu conv bn relu conv", name="wrn", depth=10, width=1)
    names = [name for name, _ in model.stage2.block1.entry.named_children()]
    assert names == ["gn1", "relu1"]


def test_groups_of_gn_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"norm.gn_groups: 5 groups do not divide a layer of 16"):
        gn_net({"kind": "batch", "gn_groups": 5})
    with pytest.raises(ConfigError, match=r"norm.groups: 3 groups do not divide .* 1, 2, 4, 8, 16"):
        gn_net({"kind": "group", "groups": 3})


def test_a_net_that_evaluates_on_the_batch_can_be_summarised():
    network = {"name": "mlp", "widths": [8]}
    config = make_config(network=network, norm={"kind": "batch", "eval_statistics": "batch"})
    model = build(config, classes=10, channels=3, size=8, seed=0)
    assert summarise(model, channels=3, size=8)["macs"] == 192 * 8 + 8 * 10
