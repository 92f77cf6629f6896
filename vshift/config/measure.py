"""The sections `measure` and `recalibration`: what is logged, and re-estimated after training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from vshift.config.recalibration import METHODS, MethodName
from vshift.config.section import Count, CountOrZero, Epochs, OneOrList, Section, no_repeats


class Measure(Section):
    every: CountOrZero = Field(
        1, description="Log every layer's variances each n-th epoch and the last; 0: never."
    )
    sites: OneOrList[
        Literal["bn", "norms", "activations", "logits", "all"],
        Annotated[list[str], Field(min_length=1, max_length=100), no_repeats("site")],
    ] = Field(
        "bn",
        description="What is measured besides the inputs of BN layers: norms, the inputs of layer, "
        "RMS and group norms; activations, their outputs; logits; all of these; or a list of these "
        "words and of globs over module names.",
    )
    eval_batches: Count = Field(
        30, description="Augmented training batches that eval_variance is averaged over."
    )
    eval_epochs: OneOrList[Literal["all"], Epochs] = Field(
        [], description="Epochs at which eval_variance is measured; the last one always is."
    )
    explain_batches: CountOrZero = Field(
        10,
        description="Batches from which lag, mean shift, and a layer's local, inherited and "
        "predicted ratio are taken, wherever eval_variance is measured; 0: not at all.",
    )
    modes: bool = Field(
        False,
        description="After the last epoch, accuracy for noise on and off with BN on batch, running "
        "and recalibrated statistics.",
    )
    monte_carlo: CountOrZero = Field(
        0, description="Passes of Monte Carlo dropout over the test images; 0: none."
    )
    monte_carlo_bn: CountOrZero = Field(
        0,
        description="Passes of Monte Carlo batch normalisation over the test images: noise off, BN "
        "on the statistics of one training batch per pass; 0: none.",
    )

    @field_validator("monte_carlo", "monte_carlo_bn")
    @classmethod
    def _a_spread_takes_two(cls, passes: int) -> int:
        if passes == 1:
            raise ValueError("a spread takes at least 2 passes; 0 turns it off")
        return passes


class Recalibration(Section):
    """Re-estimating BN statistics after the last epoch: what Li et al. 2019 call Adjust."""

    methods: Annotated[list[MethodName], no_repeats("method")] = Field(
        ["precise"],
        max_length=len(METHODS),
        description=" ".join(f"{name}: {method.words}." for name, method in METHODS.items()),
    )
    batches: Count = Field(30, description="Training batches that they are computed from.")
    augment: bool = Field(True, description="Crop and flip them as in training.")
    moments: Literal["both", "variance"] = Field(
        "both", description="Re-estimate mean and variance, or the variance only."
    )
    estimator: Literal["pooled", "average"] = Field(
        "pooled", description="Of all values of all batches, or the average over batches."
    )
    batch_weight: float = Field(
        0.5, ge=0, le=1, description="For mix: the weight of the test batch's own statistics."
    )
