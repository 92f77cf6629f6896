"""The section `norm`: the normalisation layers, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vshift.config.section import Section

Groups = Annotated[int, Field(ge=1)]


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
    gn_groups: Groups = Field(
        8, description="Groups of the layers called `gn` in the block order; must divide channels."
    )


class GroupNorm(_Affine):
    kind: Literal["group"] = Field(
        description="Group normalisation: the same in training and in testing."
    )
    groups: Groups = Field(8, description="Groups of channels; must divide every layer's channels.")


class NoNorm(Section):
    kind: Literal["none"] = Field(
        description="No normalisation: `bn` and `gn` in the block order are left out."
    )


AnyNorm = BatchNorm | GroupNorm | NoNorm
Norm = Annotated[AnyNorm, Field(discriminator="kind")]
