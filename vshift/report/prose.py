"""Sentences of ours around names and numbers that anybody may have written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from vshift.compare.statistics import Difference
from vshift.report.data import Study
from vshift.text import format_number


@dataclass(frozen=True)
class Card:
    """A question, its answer in a few words, what the answer rests on, and how it was found."""

    id: str
    question: str
    answer: str
    text: list[Markup]
    fine: Markup | None = None


def bold(text: str) -> Markup:
    return Markup("<b>{}</b>").format(text)


def joined(parts: Iterable[str | Markup]) -> Markup:
    """`a, b and c`, escaped."""
    parts = list(parts)
    if len(parts) < 2:
        return Markup("").join(parts)
    return Markup(", ").join(parts[:-1]) + Markup(" and ") + parts[-1]


_MOST = 10  # names in one sentence; the table below has all


def listed(parts: Iterable[str | Markup]) -> Markup:
    """As `joined`, of the first few; the rest is counted."""
    parts = list(parts)
    more = len(parts) - _MOST
    return joined(parts if more < 2 else [*parts[:_MOST], f"{more} more (see the table)"])


def say(text: str, *values: object) -> Markup:
    """A sentence of ours around values that anybody may have written."""
    return Markup(text).format(*values)


def amount(study: Study, value: float | None, sign: str = "") -> str:
    return format_number(value, 2 if study.score == "test_error" else 4, sign)


def interval(study: Study, found: Difference) -> str:
    """`95 % CI +1.0 to +2.0`, or what is missing for one."""
    between = span(study, found)
    if between:
        return f"95 % CI {between}"
    seed = "from one seed" if found.n < 2 else "as no two seeds differ"
    return f"no confidence interval {seed}"


def span(study: Study, found: Difference) -> str:
    """`+1.0 to +2.0`; empty where there is no interval."""
    if found.low is None or found.high is None:
        return ""
    return f"{amount(study, found.low, '+')} to {amount(study, found.high, '+')}"


def points(study: Study) -> str:
    return " points" if study.score == "test_error" else ""


def unit(study: Study) -> str:
    return "points of test error" if study.score == "test_error" else "of test loss"


def p_text(p: float | None) -> str:
    """`p = 0.025`, `p < 0.001`; empty where there was no test."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {format_number(p, 3)}"


def seeds_text(needed: int | None) -> str:
    return "" if needed is None else f"about {needed:,} seeds a config would tell"
