"""The entries of `network.noise`: kinds of noise, how strong they are, and where they sit."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vshift.config import block
from vshift.config.base import OneOrList, Section

Rate = Annotated[float, Field(ge=0, lt=1)]
Positions = OneOrList[
    block.Position, Annotated[list[block.Position], Field(min_length=1, max_length=5)]
]
_DROP_RATE = "The DROP rate in [0, 1), the paper's 1 − p."


class _Noise(Section):
    """What every kind shares."""

    position: Positions | None = Field(
        None,
        description="Where the noise sits: before_last_bn (the paper's Dropout-(a)), "
        "before_last_conv (Dropout-(b)), before_bn or after_bn (every BN of the block), "
        "before_classifier, or several. Leave it out where `block` says `noise` itself.",
    )

    @field_validator("position")
    @classmethod
    def _differ(cls, position: str | list[str] | None) -> str | list[str] | None:
        if isinstance(position, list) and len(set(position)) < len(position):
            raise ValueError("a position is listed twice")
        return position

    @property
    def positions(self) -> tuple[str, ...]:
        if self.position is None:
            return ()
        return (self.position,) if isinstance(self.position, str) else tuple(self.position)


class _Multiplicative(_Noise):
    """Kinds that multiply by independent numbers of mean 1; `variance` is theirs."""

    unit: Literal["element", "channel", "sample"] = Field(
        "element",
        description="One random number for each value, one for each channel of an image, or one "
        "for each image.",
    )

    @property
    def variance(self) -> float:
        """The noise variance s², which alone decides the variance shift."""
        raise NotImplementedError


class Dropout(_Multiplicative):
    kind: Literal["dropout"] = Field(
        description="Each value is dropped, or kept and divided by 1 − rate."
    )
    rate: Rate = Field(description=_DROP_RATE)

    @property
    def variance(self) -> float:
        return dropout_variance(self.rate)


def dropout_variance(rate: float) -> float:
    """s² of inverted dropout."""
    return rate / (1 - rate)


def _one_of(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {' and '.join(names)}; {len(given)} are given")


class Gaussian(_Multiplicative):
    kind: Literal["gaussian"] = Field(description="Multiply by a normal number of mean 1.")
    sigma: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Standard deviation of the multiplier; 1 matches dropout at rate 0.5."
    )
    rate: Rate | None = Field(
        None, description="Instead of sigma: the dropout rate whose noise variance it matches."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _one_of(self, "sigma", "rate")
        return self

    @property
    def variance(self) -> float:
        return dropout_variance(self.rate) if self.rate is not None else (self.sigma or 0.0) ** 2


class Uniform(_Multiplicative):
    """Uout: x + x·r with r ~ U(−β, β)."""

    kind: Literal["uniform", "uout"] = Field(
        description="Multiply by a number drawn evenly around 1."
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Half width of the multiplier's range around 1; the paper uses 0.1 to 0.5.",
    )
    rate: Rate | None = Field(
        None, description="Instead of beta: the dropout rate whose noise variance it matches."
    )

    @field_validator("kind")
    @classmethod
    def _one_name(cls, kind: str) -> str:
        return "uniform"

    @model_validator(mode="after")
    def _check(self) -> Self:
        _one_of(self, "beta", "rate")
        return self

    @property
    def variance(self) -> float:
        return dropout_variance(self.rate) if self.rate is not None else (self.beta or 0.0) ** 2 / 3


class StochasticDepth(_Noise):
    """Huang et al. 2016 (1603.09382), with the scaling in training: `dropout` of unit `sample`."""

    kind: Literal["stochastic_depth"] = Field(
        description="An image's whole tensor is dropped, or kept and divided by 1 − rate; belongs "
        "at the end of a residual branch."
    )
    rate: Rate = Field(description=_DROP_RATE)

    @property
    def unit(self) -> str:
        return "sample"

    @property
    def variance(self) -> float:
        return dropout_variance(self.rate)


class ClassicDropout(_Noise):
    """Srivastava et al. 2014, the form before inverted dropout."""

    kind: Literal["classic_dropout"] = Field(
        description="Each value is dropped or kept as it is; in testing all are multiplied by "
        "1 − rate."
    )
    rate: Rate = Field(description=_DROP_RATE)


class ScaledDropout(_Noise):
    kind: Literal["scaled_dropout"] = Field(
        description="Dropout, then times √(1 − rate) in training: the standard deviation of a "
        "zero-mean input stays, the mean shrinks."
    )
    rate: Rate = Field(description=_DROP_RATE)


class AlphaDropout(_Noise):
    """Klambauer et al. 2017 (1706.02515)."""

    kind: Literal["alpha_dropout"] = Field(
        description="Dropped values become SELU's lower limit; mean 0 and variance 1 stay."
    )
    rate: Rate = Field(description=_DROP_RATE)


class DropBlock(_Noise):
    """Ghiasi et al. 2018 (1810.12890)."""

    kind: Literal["dropblock"] = Field(
        description="Squares of a channel's image are dropped, the rest is divided by 1 − rate."
    )
    rate: Rate = Field(
        description="The share of values dropped in [0, 1), the same at every pixel."
    )
    size: int = Field(7, ge=1, le=256, description="Side of a square in pixels; 1 is dropout.")


Multiplicative = Dropout | Gaussian | Uniform | StochasticDepth
AnyNoise = Multiplicative | ClassicDropout | ScaledDropout | AlphaDropout | DropBlock
Noise = Annotated[AnyNoise, Field(discriminator="kind")]
