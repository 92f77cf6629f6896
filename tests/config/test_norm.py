"""The norm section: batch unless another kind is named, and momentum as in PyTorch."""

import pytest

from vshift.config import dump, load
from vshift.config.norm import BatchNorm, GroupNorm, NoNorm


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
