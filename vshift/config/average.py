"""The section `average`: a running average of the weights, tested after the last epoch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vshift.config.section import Count, Fraction, OneOrList, Section, no_repeats

Buffers = Literal["own", "copied", "averaged", "precise"]


class _Average(Section):
    buffers: OneOrList[
        Buffers, Annotated[list[Buffers], no_repeats("word"), Field(min_length=1, max_length=4)]
    ] = Field(
        "averaged",
        description="BN statistics of the averaged network, or a list to test each. own: of its "
        "own forward passes in train mode, as torch's update_bn; copied: those of the trained "
        "network; averaged: as the weights; precise: re-estimated with noise off.",
    )

    @property
    def words(self) -> list[Buffers]:
        """`buffers` as a list."""
        return self.buffers if isinstance(self.buffers, list) else [self.buffers]


class EMA(_Average):
    kind: Literal["ema"] = Field(description="Exponential moving average.")
    decay: Fraction = Field(
        0.999, description="Weight of the average so far; the first weights are taken as they are."
    )
    every: Count = Field(
        1, description="Steps between those whose weights are averaged; the last one always is."
    )


class SWA(_Average):
    """Stochastic weight averaging (Izmailov et al. 2018, 1803.05407)."""

    kind: Literal["swa"] = Field(description="Simple average over the end of the run.")
    start: float = Field(0.75, ge=0, lt=1, description="Share of the steps before the first one.")
    every: Count | None = Field(
        None,
        description="Steps between those whose weights are averaged, back from the last; default: "
        "an epoch.",
    )


AnyAverage = EMA | SWA
Average = Annotated[AnyAverage, Field(discriminator="kind")]
