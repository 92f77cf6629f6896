"""Networks of one's own by reference: told the sizes, converted in place, refused in words."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from tests.configs import make_config
from vshift.errors import ConfigError
from vshift.networks.build import build
from vshift.networks.norm import BatchNorm
from vshift.networks.own import needs_contiguous
from vshift.shift.decompose import decompose
from vshift.shift.modes import modes, noise_modules

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, channels, image_size, width=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width, eps=1e-3, momentum=0.3)
        self.fc = nn.Linear(width * image_size**2, num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().flatten(1))

class View(Net):
    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.fc(x.view(len(x), -1))

class Seven(Net):
    def forward(self, x):
        return super().forward(x)[:, :7]

class Merged(Net):
    def forward(self, x):
        return super().forward(x).flatten().unsqueeze(1)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), 1

class Wrong(Net):
    def forward(self, x):
        return self.fc(x)

class Refuses(nn.Module):
    def __init__(self):
        raise RuntimeError("not here")

class Frozen(Net):
    def __init__(self, num_classes, channels, image_size):
        super().__init__(num_classes, channels, image_size)
        self.requires_grad_(False)

class OtherNorms(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.lines = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
        self.solid = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
        self.lazy = nn.LazyLinear(classes)

    def forward(self, x):
        lines = self.lines(x.flatten(2)).mean(2)
        solid = self.solid(x.unsqueeze(1)).mean((2, 3, 4))
        return self.lazy(torch.cat([lines, solid], 1))

def nothing():
    pass

def stops():
    raise SystemExit(3)

class Noisy(nn.Module):
    def __init__(self, sigma=0.5, known=True):
        super().__init__()
        self.sigma = sigma
        if known:
            self.variance = sigma**2
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x, self.sigma)

class Inner(nn.Module):
    def forward(self, x, sigma):
        return x * (1 + sigma * torch.randn_like(x)) if self.training else x

class Norm(nn.Module):
    def __init__(self, num_features, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((num_features, 1, 1), scale))

    def forward(self, x):
        return x * self.scale
"""


@pytest.fixture
def make(tmp_path: Path):
    (tmp_path / "parts.py").write_text(FILE)

    def make(name: str, norm: dict[str, Any] | None = None, **network: Any) -> nn.Module:
        name = name if ":" in name else f"{tmp_path}/parts.py:{name}"
        sections: dict[str, Any] = {"network": {"name": name, **network}}
        sections |= {"norm": norm} if norm else {}
        return build(make_config(**sections), classes=10, channels=3, size=32, seed=1)

    return make


def test_it_is_told_the_sizes_that_it_asks_for(make) -> None:
    model = make("Net", args={"width": 6})
    assert model.conv.weight.shape == (6, 3, 3, 3)
    assert model.fc.weight.shape == (10, 6 * 32**2)


def test_the_seed_decides_the_initial_weights_and_nothing_else_changes(make) -> None:
    state = torch.get_rng_state()
    one, two = make("Net").state_dict(), make("Net").state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_plain_batch_norm_becomes_ours_in_place(make) -> None:
    """Names, values and the output in both modes are those of plain PyTorch."""
    plain, ours = make("Net", convert=False), make("Net")
    assert type(plain.bn) is nn.BatchNorm2d
    assert type(ours.bn) is BatchNorm
    assert (ours.bn.eps, ours.bn.momentum) == (1e-3, 0.3)
    assert list(plain.state_dict()) == list(ours.state_dict())
    images = torch.randn(8, 3, 32, 32)
    for train in (True, True, False):
        got, expected = ours.train(train)(images), plain.train(train)(images)
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours.bn.running_var, plain.bn.running_var)
    inputs = ours.conv(images)
    torch.testing.assert_close(ours.bn.batch_var, inputs.var((0, 2, 3)))


def test_other_shapes_and_lazy_layers_work(make) -> None:
    model = make("OtherNorms")
    assert type(model.lines[1]) is type(model.solid[1]) is BatchNorm
    model.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert model.lines[1].batch_var.min() > 0


def test_the_norm_section_replaces_or_configures_the_layers(make) -> None:
    assert type(make("Net", {"kind": "group", "groups": 2}).bn) is nn.GroupNorm
    assert type(make("Net", {"kind": "none"}).bn) is nn.Identity
    assert make("Net", {"kind": "batch", "ghost": 4, "update_running_stats": False}).bn.ghost == 4
    with pytest.raises(ConfigError, match=r"norm.momentum: the layers of .*Net have their own mom"):
        make("Net", {"kind": "batch", "momentum": 0.2})
    for network in ({"name": "Net", "convert": False}, {"name": "torchvision:squeezenet1_1"}):
        with pytest.raises(ConfigError, match="keeps its own norm layers, as"):
            make(norm={"kind": "none"}, **network)


def test_code_for_contiguous_tensors_gets_them(make) -> None:
    model, other = make("View"), make("Net")
    assert needs_contiguous(model)
    assert not needs_contiguous(other)
    assert other.conv.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), other(images))  # the same seed's weights


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Seven", r"gives outputs \[2, 7\] for images \[2, 3, 32, 32\]; this data needs \[2, 10\]"),
        ("Merged", r"changes the batch dimension: of images \[2, 3, 32, 32\] its forward makes "
         r"\[20, 1\], not \[2, 10\]"),
        ("Pair", "gives a value of type tuple in its forward, not a tensor"),
        ("nothing", "nothing returned None, not a torch.nn.Module"),
        ("stops", "SystemExit: 3"),
        ("Frozen", "Frozen has no parameters to train"),
        ("Refuses", r"Refuses: RuntimeError: not here\n  .*parts.py:38, in __init__: raise "
         r"RuntimeError\(\"not here\"\)$"),
        ("Wrong", r"cannot take images \[2, 3, 32, 32\]: RuntimeError: mat1 .*\n  .*parts.py:34, "
         r"in forward: return self.fc\(x\)$"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; did you mean `resnet18`"),
        ("torchvision:fcn_resnet50", "gives a value of type OrderedDict"),
    ],
)  # fmt: skip
def test_what_is_no_network_for_the_images_is_refused(name: str, problem: str, make) -> None:
    """With both shapes, and of a traceback the user's own frames only."""
    with pytest.raises(ConfigError, match=problem):
        make(name)


def test_arguments_that_the_callable_does_not_take(make) -> None:
    with pytest.raises(
        ConfigError, match=r"^network.args.widht: .*Net takes no 'widht'; did you mean `wid"
    ):
        make("Net", args={"widht": 3})
    with pytest.raises(
        ConfigError,
        match=r"^network.args.width_per_grup: torchvision:resnet18 takes "
        "no 'width_per_grup'; did you mean `width_per_group`",
    ):
        make("torchvision:resnet18", args={"width_per_grup": 3})


def test_a_torchvision_model_is_torchvisions(make) -> None:
    model = make("torchvision:resnet18", args={"width_per_group": 64})
    torch.manual_seed(1)
    plain = models.resnet18(num_classes=10)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )
    assert sum(type(module) is BatchNorm for module in model.modules()) == 20


def test_a_timm_model_is_told_its_channels(make, tmp_path: Path) -> None:
    config = make_config(network={"name": "timm:resnet10t"})
    model = build(config, classes=7, channels=1, size=32, seed=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_without_timm_its_models_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    config = make_config(network={"name": "timm:resnet10t"})
    with pytest.raises(ConfigError, match=r"models need timm .*`pip install 'vshift\[timm\]'`"):
        build(config, classes=7, channels=1, size=32, seed=1)


# ---- norms and noise


def test_a_norm_of_ones_own_stands_for_every_bn(make, tmp_path: Path) -> None:
    norm = {"kind": f"{tmp_path}/parts.py:Norm", "args": {"scale": 2.0}}
    replaced = make("Net", norm)
    assert torch.equal(replaced.bn.scale, torch.full((4, 1, 1), 2.0))
    config = make_config(norm=norm)
    ours = build(config, classes=10, channels=3, size=32)
    assert sum(type(module).__name__ == "Norm" for module in ours.modules()) == 7
    with pytest.raises(ConfigError, match=r"parts.py:nothing returned None, not a torch.nn.Module"):
        make("Net", {"kind": f"{tmp_path}/parts.py:nothing"})
    grouped = make_config(norm=norm, network={"name": "mlp", "widths": [8], "block": "fc gn relu"})
    with pytest.raises(ConfigError, match=r"gn is a group norm, and .*parts.py:Norm says nothing"):
        build(grouped, classes=10, channels=3, size=32)


@pytest.mark.parametrize("known", [True, False])
def test_noise_of_ones_own_is_noise(known: bool, make, tmp_path: Path) -> None:
    """It is switched as ours is, and its shift predicted if it says its s².

    The prediction must agree with what is measured, within 4 standard errors.
    """
    args = {"sigma": 0.6, "known": known}
    noise = {"kind": f"{tmp_path}/parts.py:Noisy", "args": args, "before": "bn"}
    model = make("Net", noise=noise)
    (module,) = noise_modules(model).values()
    images = torch.randn(64, 3, 32, 32)
    with modes(model, noise=True, norm="running"):
        assert module.inner.training
        assert not torch.equal(model(images), model(images))
    with modes(model, noise=False, norm="running"):
        assert torch.equal(model(images), model(images))
    parts = decompose(model, lambda: images.split(16), seed=0)["bn"]
    assert parts.total.value > 1.1
    if known:
        difference = abs(parts.predicted.value - parts.local.value)
        assert difference < 4 * (parts.predicted.error**2 + parts.local.error**2) ** 0.5
    else:
        assert math.isnan(parts.predicted.value)


def test_pytorchs_own_modules_are_noise_too(make) -> None:
    noise = {"kind": "torch.nn:Dropout2d", "args": {"p": 0.3}, "after": "conv"}
    (module,) = noise_modules(make("Net", noise=noise)).values()
    assert (type(module), module.p) == (nn.Dropout2d, 0.3)


@pytest.mark.parametrize("kind", ["{}/parts.py:Noisy", "torch.nn:Dropout"])
def test_noise_of_ones_own_acts_in_a_part_of_the_run(kind: str, make, tmp_path: Path) -> None:
    args = {"p": 0.5} if "torch" in kind else {"sigma": 0.6, "known": True}
    noise = {"kind": kind.format(tmp_path), "args": args, "before": "bn", "from": 0.5}
    model = make("Net", noise=noise)  # of 2 epochs
    (module,) = noise_modules(model).values()
    images = torch.randn(64, 3, 32, 32)
    for epoch, acts in ((1, False), (2, True)):
        module.enter_epoch(epoch)
        assert torch.equal(module.train()(images), images) == (not acts)
        parts = decompose(model, lambda: images.split(16), seed=0)["bn"]
        assert (parts.predicted.value > 1.1) == acts
        assert (parts.local.value > 1.1) == acts
    with pytest.raises(ValueError, match="over_depth: only its own code knows how strong it is"):
        make("Net", noise={**noise, "over_depth": "linear"})


def test_arguments_of_one_of_several_noises_are_named_with_its_number(make, tmp_path: Path) -> None:
    own = {"kind": f"{tmp_path}/parts.py:Noisy", "args": {"sgima": 0.6}, "before": "bn"}
    for noise, key in (
        ([{"kind": "dropout", "rate": 0.5, "after": "conv"}, own], "network.noise.1.args"),
        (own, "network.noise.args"),
    ):
        with pytest.raises(ConfigError, match=rf"^{key}.sgima: .* takes no 'sgima'; did you mean"):
            make("Net", noise=noise)
