"""What a family of networks says of itself, and the norm section: batch unless it says more."""

from typing import Any

import pytest

from tests.configs import make_config
from vshift.config import dump, load
from vshift.config.norm import BatchNorm, GroupNorm, NoNorm


@pytest.mark.parametrize(
    ("network", "label", "halvings"),
    [
        ({"name": "preresnet", "depth": 20}, "preresnet-20", 2),
        ({"name": "resnet", "depth": 18}, "resnet-18", 3),
        ({"name": "resnet", "depth": 20}, "resnet-20", 2),
        ({"name": "wrn", "depth": 28, "width": 10}, "wrn-28-10", 2),
        ({"name": "resnext", "depth": 29}, "resnext-29-8-64", 2),
        ({"name": "densenet", "depth": 100}, "densenet-100-12", 2),
        ({"name": "vgg", "depth": 16, "width": 0.5}, "vgg-16-0.5", 5),
        ({"name": "vit", "depth": 3, "width": 64}, "vit-3-64-4", 0),
        ({"name": "mlp", "widths": [64, 32]}, "mlp-64-32", 0),
        ({"name": "autoencoder", "widths": [8]}, "autoencoder-8", 0),
    ],
)
def test_a_family_says_its_size(network: dict[str, Any], label: str, halvings: int) -> None:
    config = make_config(network=network)
    assert (config.network.size_label, config.network.halvings) == (label, halvings)


def test_a_norm_without_a_kind_is_batch_norm(write) -> None:
    assert load("good.yaml", ["norm={momentum: 0.3}"]).norm == BatchNorm(kind="batch", momentum=0.3)
    assert isinstance(load("good.yaml", ["norm={kind: group}"]).norm, GroupNorm)
    assert isinstance(load("good.yaml", ["norm={kind: none}"]).norm, NoNorm)


def test_momentum_null_is_the_simple_average(write) -> None:
    config = load("good.yaml", ["norm.momentum=null"])
    assert config.norm == BatchNorm(kind="batch", momentum=None)
    assert load(write("again.yaml", dump(config))) == config


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("-0.1", "-0.1 is not allowed; must be at least 0 (the new batch's weight in the running "
         "average)"),
        ("1.1", "1.1 is not allowed; must be at most 1 (the new batch's weight in the running "
         "average)"),
        ("often", "'often' is not a number"),
    ],
)  # fmt: skip
def test_momentum_is_a_weight(value: str, problem: str, write, refused) -> None:
    text = f"norm.momentum={value}"
    assert refused(load, "good.yaml", [text]) == [f"--set {text}: norm.momentum: {problem}"]
