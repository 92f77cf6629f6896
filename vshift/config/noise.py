"""The entries of `network.noise`: kinds of noise, how strong they are, and where they sit.

A kind is one class: its keys, its noise variance s² and its name in words. A new one is added here,
to `AnyNoise`, and as a module in `networks/noise.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from vshift.config import block
from vshift.config.identity import short_references
from vshift.config.own import OwnPart, Reference
from vshift.config.section import OneOrList, Section, as_list, no_repeats, own_or_named
from vshift.text import format_value

Rate = Annotated[float, Field(ge=0, lt=1)]
Strength = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positions = OneOrList[
    block.Position,
    Annotated[list[block.Position], Field(min_length=1, max_length=6), no_repeats("position")],
]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Patterns = OneOrList[
    Pattern, Annotated[list[Pattern], Field(min_length=1, max_length=100), no_repeats("pattern")]
]
_DROP_RATE = "The DROP rate in [0, 1), the paper's 1 − p."

if TYPE_CHECKING:

    class _FromStart(Section): ...

else:  # `from` is a word of Python's, so no class body can declare a field of that name
    _start = Field(None, description="The share of the run before the noise begins; default: 0.")
    _FromStart = create_model("_FromStart", __base__=Section, **{"from": (Share | None, _start)})


class BaseNoise(_FromStart):
    """The keys and properties that every kind shares."""

    label: ClassVar[str] = ""  # in the middle of a sentence
    # Alternative strength keys, exactly one of which is given, with their symbols; the kind's own
    # key first.
    strength_keys: ClassVar[dict[str, str]] = {"rate": ""}

    position: Positions | None = Field(
        None,
        description="Where the noise sits: before_last_bn (the paper's Dropout-(a)), "
        "before_last_conv (Dropout-(b)), before_bn or after_bn (every BN of the block), "
        "before_pool, before_classifier, or several. Leave it out where `block` says `noise` "
        "itself.",
    )
    before: Patterns | None = Field(
        None,
        description="Noise on what these modules read: a name as `vshift inspect` shows it, in "
        "which * stands for any text, or several.",
    )
    after: Patterns | None = Field(
        None, description="Noise on what these modules return: a name or several, as in `before`."
    )
    until: Share | None = Field(
        None,
        description="The share of the run after which the noise ends, as `from` rounded to whole "
        "epochs; default: 1. until 0.3 is early dropout, from 0.5 late dropout.",
    )
    over_depth: Literal["linear"] | None = Field(
        None,
        description="linear: no noise in the first block, growing to the full strength in the last "
        "one, as timm's drop_path_rate; default: the same in all.",
    )

    @field_validator("from", "until")
    @classmethod
    def _one_way_to_say_always(cls, share: float | None, info: ValidationInfo) -> float | None:
        """`from: 0` and `until: 1` are the defaults, however they are written."""
        return None if share == {"from": 0.0, "until": 1.0}[str(info.field_name)] else share

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        start, end = self.span
        if start >= end:
            raise ValueError(f"from {start:g} is not before until {end:g}")
        return self

    @model_validator(mode="after")
    def _has_a_strength_to_grow(self) -> Self:
        if self.over_depth and not self.strength_keys:
            raise ValueError("over_depth: only its own code knows how strong it is; leave it out")
        return self

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        given = [key for key in self.strength_keys if getattr(self, key) is not None]
        if self.strength_keys and len(given) != 1:
            keys = " and ".join(self.strength_keys)
            raise ValueError(f"give exactly one of {keys}; {len(given)} are given")
        return self

    @property
    def positions(self) -> tuple[str, ...]:
        return tuple(as_list(self.position))

    @property
    def patterns(self) -> tuple[tuple[Literal["before", "after"], str], ...]:
        """Pairs of `before` or `after` and a pattern of module names."""
        return (
            *(("before", pattern) for pattern in as_list(self.before)),
            *(("after", pattern) for pattern in as_list(self.after)),
        )

    @property
    def places(self) -> tuple[str, ...]:
        """Where the noise sits: `before_last_bn`, `before layer*.bn2`; () if `block` says it."""
        return tuple(places_of(self.model_dump(include={"position", "before", "after"})))

    @property
    def span(self) -> tuple[float, float]:
        """The shares of the run at which the noise begins and ends."""
        start: float | None = getattr(self, "from")
        return start or 0.0, 1.0 if self.until is None else self.until

    def epochs(self, total: int) -> range:
        """The epochs, counted from 1, of a run of `total` in which the noise acts."""
        first, last = (int(share * total + 0.5) for share in self.span)
        return range(first + 1, last + 1)

    def at_depth(self, share: float) -> Self:
        """The noise of a block that comes after this share of the other blocks."""
        if self.over_depth is None or self.strength_key is None:
            return self
        return self.model_copy(update={self.strength_key: (self.strength or 0.0) * share})

    @property
    def extent(self) -> tuple[str, ...]:
        """In which blocks and when it acts, in words; () in all and always."""
        start, end = self.span
        times = [f"from {start:g}"] * (start > 0) + [f"until {end:g}"] * (end < 1)
        words = ["growing linearly over the blocks"] if self.over_depth else []
        return (*words, *([f"{' '.join(times)} of the run"] if times else []))

    @property
    def strength_key(self) -> str | None:
        """Which key says how strong the noise is; None only where a run folder does not say."""
        given = (k for k in self.strength_keys if getattr(self, k, None) is not None)
        return next(given, None)

    @property
    def strength(self) -> float | None:
        """The value of `strength_key`; 0 is no noise."""
        return None if self.strength_key is None else float(getattr(self, self.strength_key))

    @property
    def strength_text(self) -> str:
        """`0.3` for a rate, `σ 0.5`."""
        if self.strength_key is None:
            return ""
        return f"{self.strength_keys[self.strength_key]} {self.strength:g}".strip()

    @property
    def phrase(self) -> str:
        """The noise in words, up to the value of its strength: `Gaussian noise with σ`."""
        if self.strength_key is None:
            return self.label
        if self.strength_key != "rate":
            return f"{self.label} with {self.strength_keys[self.strength_key]}"
        matched = "" if next(iter(self.strength_keys)) == "rate" else " as strong as dropout"
        return f"{self.label}{matched} at rate"

    @property
    def variance(self) -> float:
        """The noise variance s².

        It alone decides the variance shift of noise that multiplies by independent numbers of mean
        1. The other kinds give that of dropout at their rate, which orders them by strength.
        """
        rate = self.strength or 0.0
        return rate / (1 - rate)


class _Multiplicative(BaseNoise):
    """Kinds that multiply by independent numbers of mean 1."""

    unit: Literal["element", "channel", "sample"] = Field(
        "element",
        description="One random number for each value, one for each channel of an image, or one "
        "for each image.",
    )


class Dropout(_Multiplicative):
    label = "dropout"
    kind: Literal["dropout"] = Field(
        description="Each value is dropped, or kept and divided by 1 − rate."
    )
    rate: Rate = Field(description=_DROP_RATE)


class Gaussian(_Multiplicative):
    label = "Gaussian noise"
    strength_keys: ClassVar[dict[str, str]] = {"sigma": "σ", "rate": ""}
    kind: Literal["gaussian"] = Field(description="Multiply by a normal number of mean 1.")
    sigma: Strength | None = Field(
        None, description="Standard deviation of the multiplier; 1 matches dropout at rate 0.5."
    )
    rate: Rate | None = Field(
        None, description="Instead of sigma: the dropout rate whose noise variance it matches."
    )

    @property
    def variance(self) -> float:
        return super().variance if self.sigma is None else self.sigma**2


class Uniform(_Multiplicative):
    """Uout: x + x·r with r ~ U(−β, β)."""

    label = "uniform noise (Uout)"
    strength_keys: ClassVar[dict[str, str]] = {"beta": "β", "rate": ""}
    kind: Literal["uniform", "uout"] = Field(
        description="Multiply by a number drawn evenly around 1."
    )
    beta: Strength | None = Field(
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

    @property
    def variance(self) -> float:
        return super().variance if self.beta is None else self.beta**2 / 3


class StochasticDepth(BaseNoise):
    """Huang et al. 2016 (1603.09382), with the scaling in training: `dropout` of unit `sample`."""

    label = "stochastic depth"
    kind: Literal["stochastic_depth"] = Field(
        description="An image's whole tensor is dropped, or kept and divided by 1 − rate; belongs "
        "at the end of a residual branch."
    )
    rate: Rate = Field(description=_DROP_RATE)

    @property
    def unit(self) -> str:
        return "sample"


class ClassicDropout(BaseNoise):
    """Srivastava et al. 2014, the form before inverted dropout."""

    label = "classic dropout (scaled in testing, not in training)"
    kind: Literal["classic_dropout"] = Field(
        description="Each value is dropped or kept as it is; in testing all are multiplied by "
        "1 − rate."
    )
    rate: Rate = Field(description=_DROP_RATE)


class ScaledDropout(BaseNoise):
    label = "dropout scaled by √(1 − rate)"
    kind: Literal["scaled_dropout"] = Field(
        description="Dropout, then times √(1 − rate) in training: the standard deviation of a "
        "zero-mean input stays, the mean shrinks."
    )
    rate: Rate = Field(description=_DROP_RATE)


class AlphaDropout(BaseNoise):
    """Klambauer et al. 2017 (1706.02515)."""

    label = "alpha dropout"
    kind: Literal["alpha_dropout"] = Field(
        description="Dropped values become SELU's lower limit; mean 0 and variance 1 stay."
    )
    rate: Rate = Field(description=_DROP_RATE)


class DropBlock(BaseNoise):
    """Ghiasi et al. 2018 (1810.12890)."""

    label = "DropBlock"
    kind: Literal["dropblock"] = Field(
        description="Squares of a channel's image are dropped, the rest is divided by 1 − rate."
    )
    rate: Rate = Field(
        description="The share of values dropped in [0, 1), the same at every pixel."
    )
    size: int = Field(7, ge=1, le=256, description="Side of a square in pixels; 1 is dropout.")


class OwnNoise(OwnPart, BaseNoise):
    """A callable that returns an `nn.Module`.

    With an attribute `variance`, its s², it promises to multiply by independent numbers of mean 1
    in training (one for each value, or as an attribute `unit` says) and to be the identity in eval
    mode; then the shift is predicted.
    """

    section = "network.noise"
    label = "noise of one’s own"
    strength_keys: ClassVar[dict[str, str]] = {}
    kind: Reference = Field(description="The callable; its module may offer `variance`, its s².")

    @property
    def phrase(self) -> str:
        name = str(short_references(self.kind, "kind"))
        given = [f"{key} {format_value(value)}" for key, value in self.args.items()]
        return f"{self.label} ({', '.join([name, *given])})"

    @property
    def variance(self) -> float:
        """NaN: only its code knows."""
        return math.nan


NamedNoise = (
    Dropout
    | Gaussian
    | Uniform
    | StochasticDepth
    | ClassicDropout
    | ScaledDropout
    | AlphaDropout
    | DropBlock
)
AnyNoise = NamedNoise | OwnNoise
Noise = Annotated[
    Annotated[NamedNoise, Field(discriminator="kind"), Tag("named")]
    | Annotated[OwnNoise, Tag("own")],
    own_or_named("kind"),
]
_BY_KIND: dict[Any, type[BaseNoise]] = {
    kind: section
    for section in get_args(NamedNoise)
    for kind in get_args(section.model_fields["kind"].annotation)
}


class _OtherNoise(BaseNoise):
    """An entry of a run folder whose kind this version does not know."""

    strength_keys: ClassVar[dict[str, str]] = {"rate": "", "sigma": "σ", "beta": "β"}
    kind: str = ""
    rate: Rate | None = None
    sigma: Strength | None = None
    beta: Strength | None = None
    unit: str = "element"

    @property
    def phrase(self) -> str:
        return f"{self.kind}{super().phrase}"


def places_of(entry: Mapping[str, Any]) -> list[str]:
    """`BaseNoise.places` of an entry as a run folder says it."""
    patterns = (f"{key} {p}" for key in ("before", "after") for p in as_list(entry.get(key)))
    return [*map(str, as_list(entry.get("position"))), *patterns]


def read_noise(entry: Mapping[str, Any]) -> BaseNoise:
    """An entry of `network.noise` as a run folder says it; what this version cannot read is left
    out."""
    kind = entry.get("kind")
    other = OwnNoise if ":" in str(kind) else _OtherNoise
    section = _BY_KIND.get(kind, other) if isinstance(kind, str) else other
    known = {key: value for key, value in entry.items() if key in section.model_fields}
    try:
        return section.model_validate(known)
    except ValidationError as error:
        wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
        return section.model_construct(**{k: v for k, v in known.items() if k not in wrong})
