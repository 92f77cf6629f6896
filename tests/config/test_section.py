"""What every section has in common: closed, strict, frozen, lists without repeats."""

import pytest
from pydantic import ValidationError

from vshift.config import load
from vshift.config.norm import BatchNorm


def test_a_section_is_closed_strict_and_frozen() -> None:
    for wrong in ({"epz": 1.0}, {"eps": "0.1"}, {"affine": 1}, {"eps": float("nan")}):
        with pytest.raises(ValidationError):
            BatchNorm.model_validate({"kind": "batch", **wrong})
    with pytest.raises(ValidationError, match="frozen"):
        BatchNorm(kind="batch").eps = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seeds=[1, 2, 1]", "seeds: a seed is listed twice"),
        ("recalibration.methods=[swap, swap]", "recalibration.methods: a method is listed twice"),
        ("network.noise.position=[before_bn, before_bn]",
         "network.noise.position: a position is listed twice"),
    ],
)  # fmt: skip
def test_lists_without_repeats(text: str, problem: str, write, refused) -> None:
    assert refused(load, "good.yaml", [text]) == [f"--set {text}: {problem}"]
