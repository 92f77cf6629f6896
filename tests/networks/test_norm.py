"""Our batch norm against PyTorch's and by hand, its variants, and group norm."""

import copy

import pytest
import torch
from torch import nn

from tests.configs import make_config
from vshift.config.norm import BatchNorm as BatchNormConfig
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.norm import BatchNorm, BatchRenorm, LayerNorm, RMSNorm, make_norm
from vshift.networks.summary import summarise
from vshift.shift.modes import restoring_state
from vshift.shift.stats import TrainingLog
from vshift.train.compiled_step import compile_network


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
    with pytest.raises(ValueError, match=r"expected \[N, C\] to \[N, C, D, H, W\], got \[8\]"):
        BatchNorm(8)(torch.randn(8))


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


def renorm_by_hand(x, w, b, running_mean, running_var, rmax, dmax, eps=1e-5):
    """Algorithm 1 of Ioffe 2017 in x's precision; autograd sees r and d as constants."""
    dims = [d for d in range(x.ndim) if d != 1]
    column = lambda v: v.view(1, -1, *[1] * (x.ndim - 2))  # noqa: E731
    mean = x.mean(dims)
    spread = (x.var(dims, correction=0) + eps).sqrt()
    running = (running_var + eps).sqrt()
    r = (spread / running).clamp(1 / rmax, rmax).detach()
    d = ((mean - running_mean) / running).clamp(-dmax, dmax).detach()
    normal = (x - column(mean)) / column(spread) * column(r) + column(d)
    return normal * column(w) + column(b), r, d


def renorm(**options):
    torch.manual_seed(0)
    options = {"plain_steps": 0, "rmax_steps": 4, "dmax_steps": 2, "momentum": 0.1, **options}
    layer = BatchRenorm(8, **options)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("shape", SHAPES)
def test_renorm_and_its_gradients_against_float64_while_the_limits_grow(shape):
    layer, clipped = renorm(rmax=1.5, dmax=0.5), []
    exact = [nn.Parameter(p.detach().double()) for p in (layer.weight, layer.bias)]
    mean, var = torch.zeros(8).double(), torch.ones(8).double()
    for step in range(6):
        x = batch(24, *shape, seed=step).double() * (1 + step) / 3 + step
        x1, x2 = x.float().requires_grad_(), x.clone().requires_grad_()
        rmax, dmax = 1 + 0.5 * min(1, step / 4), 0.5 * min(1, step / 2)
        y1 = layer(x1)
        y2, r, _ = renorm_by_hand(x2, *exact, mean, var, rmax, dmax)
        clipped += [bool((r == rmax).any() or (r == 1 / rmax).any()), bool((r != 1).any())]
        torch.testing.assert_close(y1, y2.float(), rtol=1e-4, atol=1e-5)
        torch.autograd.backward((y1**3).sum(), inputs=[x1, layer.weight, layer.bias])
        torch.autograd.backward((y2**3).sum(), inputs=[x2, *exact])
        torch.testing.assert_close(x1.grad, x2.grad.float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(layer.weight.grad, exact[0].grad.float(), rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(layer.bias.grad, exact[1].grad.float(), rtol=1e-3, atol=1e-2)
        dims = [d for d in range(x.ndim) if d != 1]
        mean = 0.9 * mean + 0.1 * x.mean(dims)
        var = 0.9 * var + 0.1 * x.var(dims, correction=1)
        torch.testing.assert_close(layer.running_mean, mean.float())
        torch.testing.assert_close(layer.running_var, var.float())
    assert all(clipped[2:])  # the limits were reached, and something was corrected


def test_a_compiled_network_has_the_gradients_of_renorm():
    """The compiler by itself computes r and d of the backward pass from the moved statistics."""
    plain = nn.Sequential(nn.Linear(8, 8), renorm())
    compiled = copy.deepcopy(plain)
    forwards = [plain, compile_network(compiled)]
    for step in range(3):
        x = batch(24, 8, seed=step) * 2 + 1
        for forward in forwards:
            (forward(x) ** 3).sum().backward()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-2)


def test_unclipped_renorm_trains_as_it_tests():
    layer = renorm(rmax=100.0, dmax=100.0, rmax_steps=0, dmax_steps=0)
    for step in range(3):
        layer.train()(batch(16, 8, 4, 4, seed=step))
    x = batch(16, 8, 4, 4, seed=9) * 2 + 1
    tested = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), tested, rtol=1e-4, atol=1e-5)


def test_renorm_begins_as_batch_norm_and_its_limits_grow_as_the_paper_says():
    layer = BatchRenorm(8)
    plain = BatchNorm(8, momentum=0.01)
    for step in range(2):
        x = batch(16, 8, 4, 4, seed=step)
        torch.testing.assert_close(layer(x), plain(x))
    expected = {0: (1, 0), 5_000: (1, 0), 15_000: (1 + 2 * 10 / 35, 2.5), 22_500: (2, 4.375),
                25_000: (1 + 2 * 20 / 35, 5), 40_000: (3, 5), 10**6: (3, 5)}  # fmt: skip
    for step, limits in expected.items():
        layer.num_batches_tracked.fill_(step)
        assert [float(limit) for limit in layer.limits()] == pytest.approx(limits, rel=1e-6)


def test_renorm_without_scale_and_shift_and_in_low_precision():
    layer = BatchRenorm(8, affine=False, plain_steps=0, rmax_steps=0, dmax_steps=0)
    x = batch(16, 8, 4, 4)
    layer(x)
    y, _, _ = renorm_by_hand(
        x, torch.ones(8), torch.zeros(8), layer.running_mean, layer.running_var, 3, 5
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16().to(memory_format=torch.channels_last))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), y, rtol=0.02, atol=0.02)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(8, affine=False).state_dict())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ours", [LayerNorm, RMSNorm])
def test_layer_and_rms_norm_are_pytorchs_over_the_channels_of_each_pixel(ours, shape):
    layer = ours(8, 1e-3)
    reference = (nn.LayerNorm if ours is LayerNorm else nn.RMSNorm)(8, 1e-3)
    for module in (layer, reference):
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    x = batch(6, *shape)
    rows = x.movedim(1, -1).reshape(-1, 8)  # one for each pixel
    found = layer(x)
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, 8), reference(rows))
    exact = rows.double()
    if ours is LayerNorm:
        exact = exact - exact.mean(1, keepdim=True)
    exact = exact / (exact.square().mean(1, keepdim=True) + 1e-3).sqrt() * layer.weight
    exact += getattr(layer, "bias", None) if ours is LayerNorm else 0
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, 8), exact.float())
    assert torch.equal(layer.eval()(x), found)
    low = layer(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), found, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("make", [BatchNorm, lambda channels: renorm()])
def test_a_frozen_layer_trains_on_its_running_statistics_and_leaves_them(make):
    layer = make(8)
    layer(batch(16, 8, 4, 4) + 1)
    layer.freeze_after = 3
    assert [layer.enter_epoch(epoch) for epoch in (1, 3, 4, 5, 2)] == [False, False, True,
                                                                       False, True]  # fmt: skip
    layer.enter_epoch(4)
    before = {name: buffer.clone() for name, buffer in layer.state_dict().items()}
    x1 = batch(16, 8, 4, 4, seed=1).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    trained = layer(x1)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    torch.testing.assert_close(layer.batch_mean, x2.detach().mean((0, 2, 3)))
    torch.testing.assert_close(layer.batch_var, x2.detach().var((0, 2, 3), correction=1))
    tested = layer.eval()(x2)
    assert torch.equal(trained, tested)
    for y in (trained, tested):
        (y**3).sum().backward()
    assert torch.equal(x1.grad, x2.grad)  # the statistics are constants
    assert layer.weight.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("norm", "kind", "values"),
    [
        ({"kind": "layer", "eps": 0.25}, LayerNorm, {"eps": 0.25}),
        ({"kind": "rms", "affine": False}, RMSNorm, {"eps": 1e-5, "weight": None}),
        ({"kind": "renorm"}, BatchRenorm, {"momentum": 0.01, "rmax": 3.0, "dmax": 5.0,
         "plain_steps": 5_000, "rmax_steps": 40_000, "dmax_steps": 25_000}),
        ({"kind": "renorm", "rmax": 2.0, "dmax": 0.5, "plain_steps": 1, "rmax_steps": 7,
          "dmax_steps": 9, "momentum": 0.5}, BatchRenorm, {"momentum": 0.5, "rmax": 2.0,
         "dmax": 0.5, "plain_steps": 1, "rmax_steps": 7, "dmax_steps": 9}),
        ({"kind": "batch", "freeze_after": 1}, BatchNorm, {"freeze_after": 1, "frozen": False}),
    ],
    ids=str,
)  # fmt: skip
def test_every_key_reaches_its_layer(norm, kind, values):
    layer = make_norm(make_config(norm=norm).norm, 8)
    assert type(layer) is kind
    assert {key: getattr(layer, key) for key in values} == values


@pytest.mark.parametrize("kind", ["batch", "renorm", "layer", "rms", "group"])
def test_every_kind_starts_with_its_scale(kind):
    layer = make_norm(make_config(norm={"kind": kind, "scale_init": 0.5}).norm, 8)
    assert bool((layer.weight == 0.5).all())


@pytest.mark.parametrize("kind", ["layer", "rms", "renorm"])
def test_gn_beside_the_other_kinds(kind):
    model = gn_net({"kind": kind, "gn_groups": 2})
    assert model.stage1.block1.branch.gn1.num_groups == 2
    assert model(batch(4, 3, 16, 16)).shape == (4, 10)
