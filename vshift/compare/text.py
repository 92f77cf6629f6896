"""Names and numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from vshift.errors import visible

__all__ = ["NONE", "fixed", "integer", "joined", "text", "visible", "with_spread"]

NONE = "–"


def text(value: str | None) -> str:
    return NONE if value is None else visible(value)


def integer(value: float | None) -> str:
    return NONE if value is None else f"{round(value):,}"


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """A number with so many decimals and a real minus; `sign` "+" writes plus signs too."""
    if value is None:
        return NONE
    # + 0.0 after rounding: no −0.00
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def with_spread(value: float | None, spread: float | None, sign: str = "", digits: int = 2) -> str:
    """`8.43 ± 0.21`, or without the spread where there is none."""
    number = fixed(value, digits, sign)
    return number if value is None or spread is None else f"{number} ± {fixed(spread, digits)}"
