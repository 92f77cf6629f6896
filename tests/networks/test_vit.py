"""The vision transformer against PyTorch's own encoder layer, its norms, noise and refusals."""

import copy
import itertools
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.configs import make_config
from tests.soak.harness import differences
from tests.train.test_checkpointer import attempt
from tests.train.test_fast_steps import context_of, equal
from tests.train.test_fast_steps import trained as trained_by
from vshift.errors import ConfigError
from vshift.kernels import fuse
from vshift.networks.blocks import Attention
from vshift.networks.build import build
from vshift.networks.noise import Noise
from vshift.networks.norm import BatchNorm, LayerNorm, RMSNorm
from vshift.shift.decompose import decompose
from vshift.shift.sites import find_sites
from vshift.shift.stats import TrainingLog
from vshift.train.captured_step import CapturedStep
from vshift.train.fast_steps import make_train_step
from vshift.train.loop import TrainStep

SMALL = {"name": "vit", "depth": 2, "width": 32, "heads": 4, "patch": 8}
DROP_PATH = "bn attention noise add bn conv1x1 gelu conv1x1 noise add"


def make(norm: str = "layer", **keys: Any) -> nn.Sequential:
    config = make_config(network={**SMALL, **keys}, norm={"kind": norm})
    model = build(config, classes=10, channels=3, size=32, seed=0)
    assert isinstance(model, nn.Sequential)
    return model


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 32, 32, generator=generator)
    return pixels.to(memory_format=torch.channels_last)


def encoder_of(block: nn.Module, width: int, heads: int) -> nn.TransformerEncoderLayer:
    """PyTorch's pre-norm encoder layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True,
        dtype=next(block.parameters()).dtype,
    )  # fmt: skip
    w = {name: tensor.flatten(1) if tensor.ndim == 4 else tensor
         for name, tensor in block.state_dict().items()}  # fmt: skip
    names = {
        "self_attn.in_proj_": "residual1.branch.qkv1.",
        "self_attn.out_proj.": "residual1.branch.proj1.",
        "linear1.": "residual2.branch.conv1.",
        "linear2.": "residual2.branch.conv2.",
        "norm1.": "residual1.branch.bn1.",
        "norm2.": "residual2.branch.bn1.",
    }
    layer.load_state_dict(
        {f"{theirs}{kind}": w[f"{ours}{kind}"] for theirs, ours in names.items()
         for kind in ("weight", "bias")}
    )  # fmt: skip
    return layer


def test_a_block_is_pytorchs_encoder_layer_and_so_are_its_gradients() -> None:
    model = make().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    block = model.get_submodule("stage1.block1")
    reference = encoder_of(block, 32, 4)
    x = torch.randn(3, 32, 4, 4).double().requires_grad_()
    tokens = x.detach().flatten(2).transpose(1, 2).clone().requires_grad_()
    ours, theirs = block(x), reference(tokens)
    torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs)
    (ours**3).sum().backward()
    (theirs**3).sum().backward()
    torch.testing.assert_close(x.grad.flatten(2).transpose(1, 2), tokens.grad)


def test_the_network_by_hand() -> None:
    """Patches cut out by `unfold`, positions, PyTorch's encoder layers, the mean over tokens."""
    model = make().eval()
    stem, head = model.get_submodule("stem"), model.get_submodule("head")
    x = images()
    patches = nn.functional.unfold(x, 8, stride=8).transpose(1, 2)
    tokens = patches @ stem.conv1.weight.flatten(1).T
    tokens = tokens + stem.position1.weight.flatten(2).transpose(1, 2)
    for name in ("block1", "block2"):
        block = model.get_submodule(f"stage1.{name}")
        tokens = encoder_of(block, 32, 4).eval()(tokens)
    norm = nn.functional.layer_norm(tokens, (32,), head.bn1.weight, head.bn1.bias)
    torch.testing.assert_close(model(x), head.fc1(norm.mean(1)), rtol=1e-4, atol=1e-5)


def test_attention_keeps_channels_last() -> None:
    x = torch.randn(2, 24, 3, 5).to(memory_format=torch.channels_last)
    y = Attention(2)(x)
    assert y.shape == (2, 8, 3, 5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(Attention(2)(x.contiguous()), y)


def test_weights_begin_as_glorot_says_and_depend_on_the_seed_alone() -> None:
    one, two = make(width=64), make(width=64)
    equal(one.state_dict(), two.state_dict())
    block = one.get_submodule("stage1.block1")
    for name, inputs, outputs in (("residual1.branch.qkv1", 64, 192),
                                  ("residual2.branch.conv2", 256, 64)):  # fmt: skip
        weight = block.get_parameter(f"{name}.weight")
        bound = (6 / (inputs + outputs)) ** 0.5
        assert float(weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    position = one.get_parameter("stem.position1.weight").detach()
    assert float(position.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "layer"), [("layer", LayerNorm), ("rms", RMSNorm), ("batch", BatchNorm)]
)
def test_every_norm_stands_before_attention_mlp_and_head(kind: str, layer: type) -> None:
    model = make(kind)
    names = [name for name, module in model.named_modules() if type(module) is layer]
    block = [f"residual{i}.branch.bn1" for i in (1, 2)]
    assert names == [*(f"stage1.block{b}.{n}" for b in (1, 2) for n in block), "head.bn1"]
    assert model(images()).shape == (4, 10)


def test_bn_takes_its_statistics_over_the_batch_and_all_tokens() -> None:
    model, seen = make("batch").train(), {}
    log = TrainingLog(model)
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name: inputs[0].detach().double()})
            )
    model(images(8))
    log.add()
    moments = log.compute_and_reset()
    assert len(moments) == 5
    for name, found in moments.items():
        values = seen[name].movedim(1, 0).flatten(1)
        assert values.shape == (32, 8 * 16)
        torch.testing.assert_close(found.mean, values.mean(1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.variance, values.var(1, correction=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("kind", "site"), [("layer", "layer_norm"), ("rms", "rms_norm")])
def test_sites_of_tokens_have_their_channels_second(kind: str, site: str) -> None:
    found = find_sites(make(kind), ["norms"], images())
    assert {(one.kind, one.channel_dim, one.channels) for one in found} == {(site, 1, 32)}
    assert len(found) == 5


def test_drop_path_as_in_timm() -> None:
    """One rate for both branches of a block, growing from 0 over the blocks."""
    noise = {"kind": "stochastic_depth", "rate": 0.2, "over_depth": "linear"}
    model = make(depth=5, block=DROP_PATH, noise=noise)
    rates = [module.rate for module in model.modules() if isinstance(module, Noise)]
    wanted = torch.linspace(0, 0.2, 5).tolist()
    assert rates == pytest.approx([rate for rate in wanted for _ in (1, 2)], abs=1e-6)


@pytest.mark.parametrize(
    ("position", "places"),
    [
        ("before_bn", ["before residual1.branch.bn1", "before residual2.branch.bn1"]),
        ("before_last_bn", ["before residual2.branch.bn1"]),
        ("after_bn", ["before residual1.branch.qkv1", "before residual2.branch.conv1"]),
        ("before_last_conv", ["before residual2.branch.conv2"]),
    ],
)
def test_positions(position: str, places: list[str]) -> None:
    model = make(depth=1, noise={"kind": "dropout", "rate": 0.5, "position": position})
    found = []
    for name, module in model.get_submodule("stage1.block1").named_modules():
        if isinstance(module, nn.Sequential) and name:
            children = list(module.named_children())
            for (_, one), (following, _) in itertools.pairwise(children):
                found += [f"before {name}.{following}"] if isinstance(one, Noise) else []
    assert found == places


def test_predictions_hold_where_noise_is_right_before_bn() -> None:
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    model = make("batch", noise=noise)
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(32, 3, 32, 32, generator=generator) for _ in range(6)]
    parts = decompose(model, lambda: iter(batches), seed=0)
    noisy = {name: part for name, part in parts.items() if part.noises}
    assert set(noisy) == {f"stage1.block{i}.residual2.branch.bn1" for i in (1, 2)}
    for part in noisy.values():
        assert part.exact
        assert part.local.value > 1.5
        error = (part.local.error**2 + part.predicted.error**2) ** 0.5
        assert abs(part.local.value - part.predicted.value) < 3 * error


NOISE = {"kind": "stochastic_depth", "rate": 0.3, "over_depth": "linear"}
SECTIONS = {
    "data": {"name": "shapes", "train": 100, "test": 20, "batch_size": 20},
    "network": {**SMALL, "patch": 16, "block": DROP_PATH, "noise": NOISE},
}


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_stopped_and_resumed(tmp_path, kind: str) -> None:
    measure = {"eval_batches": 2, "modes": True, "explain_batches": 2}
    config = make_config(**SECTIONS, norm={"kind": kind}, measure=measure)
    whole, status, _ = attempt(tmp_path / "whole", config)
    assert status == "done"
    attempt(tmp_path / "parts", config, steps=7)
    folder, status, _ = attempt(tmp_path / "parts", config)
    assert status == "done"
    assert differences(whole.path, folder.path) == []


def test_a_captured_step_is_the_eager_one(recorded_graphs: None) -> None:
    results = [
        trained_by(make(context_of(**SECTIONS)), epochs=1)
        for make in (lambda context: CapturedStep(context, compile=False), TrainStep)
    ]
    assert results[0][0] == results[1][0]
    equal(results[1][2], results[0][2])


def test_fused_layers_have_the_same_outputs_and_gradients_within_rounding() -> None:
    """Of weights: BN takes away what biases before it add, and their gradients are rounding."""
    plain = make("batch").train()
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert sum(type(module).__name__ == "FusedBatchNorm" for module in fused.modules()) == 5
    labels = torch.arange(8)
    for model in (plain, fused):
        nn.functional.cross_entropy(model(images(8)), labels).backward()
    torch.testing.assert_close(fused(images(8)), plain(images(8)), rtol=1e-3, atol=1e-4)
    for name, parameter in plain.named_parameters():
        if parameter.ndim > 1:
            found = fused.get_parameter(name).grad
            difference = (found - parameter.grad).norm() / parameter.grad.norm()
            assert difference < 2e-3, name


def test_the_fused_step_agrees_within_rounding() -> None:
    sections = {**SECTIONS, "network": {**SMALL, "patch": 16}}
    losses = []
    for kind in ("fused", "eager"):
        scores, _, _ = trained_by(make_train_step(kind, context_of(**sections), print), epochs=1)
        losses.append(scores[0].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_images_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"network\.patch: patches of 5 pixels do not divide images of 32×32; choose one of "
        r"1, 2, 4, 8, 16, 32$",
    ):
        make(patch=5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({**SMALL, "heads": 3}, "3 heads do not divide a width of 32; choose 1, 2, 4, 8, 16, 32"),
        ({**SMALL, "block": "bn attention"}, "ends in `attention`; `add` ends a branch"),
        ({**SMALL, "block": "bn attention add add"}, "a branch without an operation"),
        ({**SMALL, "block": "bn fc add"}, "`fc` does not fit a vit; use conv1x1 or conv3x3"),
        ({**SMALL, "block": "bn attention add", "noise": {**NOISE, "position": "before_last_conv"}},
         "position before_last_conv needs a conv in the block order"),
        ({"name": "preresnet", "block": "bn relu conv3x3 add"},
         "`add` does not fit a preresnet; it is an operation of a vit"),
        ({"name": "mlp", "block": "attention fc"}, "`attention` does not fit a mlp"),
    ],
)  # fmt: skip
def test_what_makes_no_vit_is_refused(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(network=network)
