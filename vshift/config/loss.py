"""The section `loss`: what training minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from vshift.config.own import OwnPart, Reference
from vshift.config.section import Section, own_or_named


class CrossEntropy(Section):
    name: Literal["cross_entropy"] = Field(description="Cross-entropy of classes, in nats.")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each label that is spread over all classes (Szegedy et al. 2016).",
    )


class MSE(Section):
    name: Literal["mse"] = Field(
        description="Mean squared error of numbers, in standard deviations of the training "
        "targets; of classes against 1 for the right one and 0 for the others."
    )


class OwnLoss(OwnPart):
    """A function (output, targets) → mean loss, or losses per image; or a class that makes one.

    Targets are classes [N], or numbers [N, D] as `data.standardize` says; mixup and CutMix make
    classes distributions [N, K].
    """

    section = "loss"
    name: Reference = Field(description="The function, also called with args; or the class.")


Loss = Annotated[
    Annotated[CrossEntropy | MSE, Field(discriminator="name"), Tag("named")]
    | Annotated[OwnLoss, Tag("own")],
    own_or_named("name"),
]
