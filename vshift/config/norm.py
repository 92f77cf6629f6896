"""The section `norm`: the normalisation layers, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator

from vshift.config.own import OwnPart, Reference
from vshift.config.section import Count, CountOrZero, Section, own_or_named

Groups = Annotated[int, Field(ge=1)]
_GN_GROUPS: int = Field(
    8, description="Groups of the layers called `gn` in the block order; must divide channels."
)


class _Affine(Section):
    eps: float = Field(1e-5, gt=0, description="Added to the variance.")
    affine: bool = Field(True, description="Learn a scale γ and a shift β for each channel.")
    scale_init: float = Field(1.0, description="Initial γ.")
    shift_init: float = Field(0.0, description="Initial β.")


class BatchNorm(_Affine):
    kind: Literal["batch"] = Field(description="Batch normalisation.")
    momentum: Annotated[float, Field(ge=0, le=1)] | None = Field(
        0.1,
        description="The new batch's weight in the running average; null: the simple average over "
        "all batches.",
    )
    ghost: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Images of a group. Training normalises one group at a time (ghost batch "
        "norm); default: the whole batch.",
    )
    update_running_stats: bool = Field(
        True, description="false: the running statistics stay at mean 0, variance 1, forever."
    )
    eval_statistics: Literal["running", "batch"] = Field(
        "running",
        description="Statistics used in testing: the running ones, or the test batch's own.",
    )
    freeze_after: Count | None = Field(
        None,
        description="Epochs of ordinary training. From the next one on, training normalises with "
        "the running statistics, which stay as they are (frozen BN); default: never.",
    )
    gn_groups: Groups = _GN_GROUPS

    @field_validator("freeze_after")
    @classmethod
    def _freezes_what_was_measured(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        if epochs is not None and info.data.get("update_running_stats") is False:
            raise ValueError(
                "update_running_stats is false, so there are no statistics to freeze; remove one"
            )
        return epochs


class BatchRenorm(_Affine):
    """Ioffe 2017 (1702.03275); the defaults are the paper's."""

    kind: Literal["renorm"] = Field(
        description="Batch renormalisation: training uses the running statistics, as far from the "
        "batch's as rmax and dmax allow."
    )
    momentum: float = Field(
        0.01, gt=0, le=1, description="The new batch's weight in the running average."
    )
    rmax: float = Field(
        3.0,
        ge=1,
        description="Limit of r = (batch's / running standard deviation), from 1/rmax to rmax.",
    )
    dmax: float = Field(
        5.0,
        ge=0,
        description="Limit of d = (batch's − running mean) / running standard deviation, from "
        "−dmax to dmax.",
    )
    plain_steps: CountOrZero = Field(
        5_000, description="Steps of plain BN: limits 1 and 0. Then they grow linearly."
    )
    rmax_steps: CountOrZero = Field(40_000, description="Steps after which r's limit is rmax.")
    dmax_steps: CountOrZero = Field(25_000, description="Steps after which d's limit is dmax.")
    gn_groups: Groups = _GN_GROUPS

    @field_validator("rmax_steps", "dmax_steps")
    @classmethod
    def _after_the_plain_steps(cls, steps: int, info: ValidationInfo) -> int:
        plain = info.data.get("plain_steps", 0)
        if steps < plain:
            raise ValueError(f"{steps} is before plain_steps, {plain}, after which limits grow")
        return steps


class LayerNorm(_Affine):
    """Ba et al. 2016 (1607.06450), at each pixel."""

    kind: Literal["layer"] = Field(
        description="Layer normalisation: over the channels, at each pixel by itself; the same in "
        "training and in testing."
    )
    gn_groups: Groups = _GN_GROUPS


class RMSNorm(Section):
    """Zhang & Sennrich 2019 (1910.07467), at each pixel."""

    kind: Literal["rms"] = Field(
        description="Divide by the root mean square over the channels, at each pixel by itself; "
        "no mean is subtracted and no shift learned."
    )
    eps: float = Field(1e-5, gt=0, description="Added to the mean square.")
    affine: bool = Field(True, description="Learn a scale γ for each channel.")
    scale_init: float = Field(1.0, description="Initial γ.")
    gn_groups: Groups = _GN_GROUPS


class GroupNorm(_Affine):
    kind: Literal["group"] = Field(
        description="Group normalisation: the same in training and in testing."
    )
    groups: Groups = Field(8, description="Groups of channels; must divide every layer's channels.")


class NoNorm(Section):
    kind: Literal["none"] = Field(
        description="No normalisation: `bn` and `gn` in the block order are left out."
    )


class OwnNorm(OwnPart):
    """A callable that returns an `nn.Module` for a number of channels."""

    section = "norm"
    kind: Reference = Field(
        description="The callable, told the channels where its signature asks for `channels`, "
        "`num_channels`, `num_features`, `features` or `dim`."
    )


NamedNorm = BatchNorm | BatchRenorm | LayerNorm | RMSNorm | GroupNorm | NoNorm
AnyNorm = NamedNorm | OwnNorm
# `norm: layer` is short for `norm: {kind: layer}`.
NormWord = Literal["batch", "renorm", "layer", "rms", "group", "none"]
Norm = Annotated[
    Annotated[NamedNorm, Field(discriminator="kind"), Tag("named")]
    | Annotated[OwnNorm, Tag("own")],
    own_or_named("kind"),
]
