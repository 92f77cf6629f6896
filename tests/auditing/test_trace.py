"""Noise is found by running: whatever makes it, and wherever it arrives."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DropBlock2d, StochasticDepth

from examples.patients import data
from vshift import audit
from vshift.config import noise as config
from vshift.networks.noise import make_noise


class Attention(nn.Module):
    def __init__(self, rate, asks=True):
        super().__init__()
        self.rate, self.asks = rate, asks

    def forward(self, x):
        q = x.flatten(2).transpose(1, 2)
        rate = self.rate if self.training or not self.asks else 0.0
        out = F.scaled_dot_product_attention(q, q, q, dropout_p=rate)
        return out.transpose(1, 2).reshape(x.shape)


class MultiHead(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=rate, batch_first=True)

    def forward(self, x):
        q = x.flatten(2).transpose(1, 2)
        return self.attention(q, q, q)[0].transpose(1, 2).reshape(x.shape)


class Masked(nn.Module):
    """A mask of one's own, in place, through a view."""

    def forward(self, x):
        if self.training:
            x = x.clone()
            x.view(-1).mul_(torch.rand(x.numel()) < 0.7)
        return x


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, 0.3, training=self.training)


class Block(nn.Module):
    """x + noise(conv(x)), a convolution, BN: the noise arrives through an addition."""

    def __init__(self, noise):
        super().__init__()
        self.conv1, self.noise = nn.Conv2d(3, 8, 3, padding=1), noise
        self.bn0 = nn.BatchNorm2d(8)
        self.conv2, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.bn0(self.conv1(x))
        x = self.bn(self.conv2(x + self.noise(x))).relu()
        return self.fc(x.mean((2, 3)))


def timm_layers():
    drop = pytest.importorskip("timm.layers", reason="the extra timm is not installed")
    return {
        "timm.DropPath": drop.DropPath(0.3),
        "timm.DropBlock2d": drop.DropBlock2d(0.3, 3),
    }


KINDS = {
    "Dropout": lambda: nn.Dropout(0.3),
    "Dropout1d": lambda: nn.Sequential(nn.Flatten(2), nn.Dropout1d(0.3), nn.Unflatten(2, (8, 8))),
    "Dropout2d": lambda: nn.Dropout2d(0.3),
    "Dropout3d": lambda: nn.Sequential(
        nn.Unflatten(2, (1, 8)), nn.Dropout3d(0.3), nn.Flatten(2, 3)
    ),
    "AlphaDropout": lambda: nn.AlphaDropout(0.3),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.3),
    "DropBlock": lambda: DropBlock2d(0.3, 3),
    "StochasticDepth": lambda: StochasticDepth(0.3, "row"),
    "F.dropout": lambda: Functional(F.dropout),
    "F.dropout2d": lambda: Functional(F.dropout2d),
    "F.alpha_dropout": lambda: Functional(F.alpha_dropout),
    "attention": lambda: Attention(0.3),
    "MultiheadAttention": lambda: MultiHead(0.3),
    "a mask of one's own": Masked,
    "timm.DropBlock2d": lambda: timm_layers()["timm.DropBlock2d"],
    "timm.DropPath": lambda: timm_layers()["timm.DropPath"],
    "vshift.Gaussian": lambda: make_noise(config.Gaussian(kind="gaussian", sigma=0.5)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_and_followed_to_the_next_bn(kind):
    torch.manual_seed(0)
    found = audit(Block(KINDS[kind]()), data(0, 64, 16))
    assert found.noise.training, kind
    assert all(source.layer.startswith("noise") for source in found.noise.training)
    assert found.noise.eval == []
    reached = {row["layer"]: bool(row["noise"]) for row in found.layers}
    assert reached == {"bn0": False, "bn": True}
    assert found.noise.at_output == []  # taken in by the batch norm on the way


def test_rate_zero_is_no_noise():
    for quiet in (nn.Dropout(0.0), Attention(0.0), nn.Identity()):
        assert audit(Block(quiet), data(0, 64, 16)).noise.training == []


def test_attention_that_drops_in_eval_is_named_and_silenced():
    torch.manual_seed(0)
    found = audit(Block(Attention(0.3, asks=False)), data(0, 64, 16)).findings
    (finding,) = [f for f in found if f.code == "noise_live"]
    assert finding.layer == "noise"
    assert finding.evidence["functions"] == ["scaled_dot_product_attention"]
    assert finding.evidence["repair"]["output_change"] > 0


def test_a_dropout_built_in_forward_is_out_of_reach():
    class Builds(nn.Module):
        def forward(self, x):
            return nn.Dropout(0.3)(x)

    found = audit(Block(Builds()), data(0, 64, 16)).findings
    (finding,) = [f for f in found if f.code == "noise_out_of_reach"]
    assert finding.layer == "noise.<Dropout>"


def test_randomness_of_python_is_seen_by_its_effect():
    class LayerDrop(nn.Module):
        def forward(self, x):
            return x if random.random() < 0.5 else 0 * x

    random.seed(4)
    found = audit(Block(LayerDrop()), data(0, 256, 16), seed=3).findings
    named = {f.code: f.layer for f in found}
    assert named.get("noise_live") == "noise"


def test_statistics_over_the_batch_in_ones_own_code():
    class Own(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    torch.manual_seed(0)
    found = audit(Block(Own()), data(0, 64, 16)).findings
    (finding,) = [f for f in found if f.code == "batch_dependent"]
    assert finding.layer == "noise"
    assert finding.severity in ("medium", "high")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        make_noise(config.Dropout(kind="dropout", rate=0.5)),
        StochasticDepth(0.5, "row"),
    ],
)
def test_a_librarys_layer_is_named_by_its_class_and_not_by_its_code(layer):
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(192, 4))
    (source,) = audit(model, data(0, 64, 16)).noise.training
    assert source.with_line == f'"1" ({type(layer).__name__})'
    assert source.function


def test_a_frozen_bn_lets_noise_through():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Dropout(0.5), Frozen(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip
    model(torch.randn(2, 3, 8, 8))
    rows = {row["layer"]: row for row in audit(model, data(0, 64, 16)).layers}
    assert rows["2"]["role"] == "frozen"
    assert rows["4"]["noise"] == ["1 (Dropout)"]
