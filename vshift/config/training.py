"""The sections `optimizer` and `schedule`."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from vshift.config.section import Epochs, Fraction, Positive, Section


class SGD(Section):
    name: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent with momentum.")
    learning_rate: float = Field(0.1, gt=0, description="Where schedules start.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Share of the previous step that is kept; 0: none."
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="Added to the gradient: this times the weight."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum instead of the usual one.")
    decay_norm_and_bias: bool = Field(
        True, description="Weight decay also on biases and on the norms' scale and shift."
    )

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return nesterov


class Warmup(Section):
    warmup: float = Field(
        0.0,
        ge=0,
        description="Epochs of linear increase from 0 to the learning rate, as the nearest whole "
        "number of steps.",
    )


class Constant(Warmup):
    name: Literal["constant"] = Field(description="The learning rate stays.")


class MultiStep(Warmup):
    name: Literal["multistep"] = Field(description="The learning rate falls at milestones.")
    milestones: Epochs = Field(
        description="Finished epochs after which the rate is multiplied by factor, increasing."
    )
    factor: Fraction = Field(0.1, description="What the rate is multiplied by at a milestone.")

    @field_validator("milestones")
    @classmethod
    def _increase(cls, milestones: list[int]) -> list[int]:
        if any(a >= b for a, b in itertools.pairwise(milestones)):
            raise ValueError("milestones must increase, for instance [81, 122]")
        return milestones


class Cosine(Warmup):
    name: Literal["cosine"] = Field(description="The learning rate follows half a cosine to final.")
    final: float = Field(0.0, ge=0, description="The learning rate at the end.")


class OneCycle(Section):
    """Smith and Topin 2018 (1708.07120), with cosine pieces and without cycling momentum."""

    name: Literal["onecycle"] = Field(description="The learning rate rises to peak, then falls.")
    peak: Positive | None = Field(
        None, description="Highest learning rate; default: the optimizer's learning_rate."
    )
    pct_start: Fraction = Field(0.3, description="Share of the steps in which the rate rises.")
    div_factor: float = Field(25.0, ge=1, description="peak / the first learning rate.")
    final_div_factor: float = Field(1e4, ge=1, description="The first learning rate / the last.")


Schedule = Annotated[Constant | MultiStep | Cosine | OneCycle, Field(discriminator="name")]
