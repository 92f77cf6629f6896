"""The recalibration methods and what to call them; `vshift.shift.recalibration` computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Those that give new BN statistics, and those that only test in another way.
Estimating = Literal["swap", "precise", "layerwise", "dropout_on"]
MethodName = Literal[Estimating, "batch", "mix"]


@dataclass(frozen=True)
class Method:
    """A recalibration method in words.

    Attributes:
        words: what it takes the statistics of, as a phrase that follows its name.
        is_adjust: whether it is a reading of Adjust (Li et al. 2019, section 5.1), which the paper
            does not specify.
    """

    words: str
    is_adjust: bool = False


METHODS: dict[MethodName, Method] = {
    "swap": Method(
        "each layer’s input in eval mode, all layers at once, so that later ones are corrected "
        "twice",
        is_adjust=True,
    ),
    "precise": Method(
        "averages over training batches with noise off, BN on each batch’s own statistics",
        is_adjust=True,
    ),
    "layerwise": Method(
        "layer by layer, each after those before it have their new statistics", is_adjust=True
    ),
    "dropout_on": Method("with noise on, a trap: eval mode does not have that variance"),
    "batch": Method("no re-estimation, each test batch’s own statistics"),
    "mix": Method("no re-estimation, a mixture of the test batch’s and the running statistics"),
}
# The readings of Adjust, in the order in which they are applied without --method.
ADJUST: list[str] = [name for name, method in METHODS.items() if method.is_adjust]
