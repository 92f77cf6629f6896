"""The base class of every section of a config, and the types that sections share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag


class Section(BaseModel):
    """Frozen, strict about types, and closed: a key that is not declared is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
        use_attribute_docstrings=False,
    )


Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**6)]  # 0 turns something off
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Epochs = Annotated[list[Count], Field(max_length=100_000)]

One = TypeVar("One")
Many = TypeVar("Many")
# A value or a list of them; the choice is made by looking, so an error speaks of one of the two.
OneOrList = Annotated[
    Annotated[One, Tag("one")] | Annotated[Many, Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "one"),
]


def own_or_named(tag_key: str) -> Discriminator:
    """Chooses, in a union of the branches `named` and `own`, by the value of `name` or `kind`.

    A value with a colon is a reference to a part of one's own; see `vshift.config.own`.
    """

    def choose(value: Any) -> str:
        is_mapping = isinstance(value, Mapping)
        tag = value.get(tag_key) if is_mapping else getattr(value, tag_key, None)
        return "own" if isinstance(tag, str) and ":" in tag else "named"

    return Discriminator(choose)


def as_list(value: Any) -> list[Any]:
    """The values of a `OneOrList` that may be None: none, one, or all."""
    return value if isinstance(value, list) else [] if value is None else [value]


def no_repeats(thing: str) -> AfterValidator:
    """For a list: refuse an entry that is listed twice."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError(f"a {thing} is listed twice")
        return value

    return AfterValidator(check)
