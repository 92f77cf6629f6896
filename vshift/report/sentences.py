"""Sentences in HTML, and the cards that hold them.

Names and numbers may have been written by anybody, so sentences are put together by markupsafe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from vshift.compare.statistics import Difference
from vshift.report.study import Study
from vshift.text import join_words

_LISTED = 10  # names in one sentence; the table below has all


@dataclass(frozen=True)
class Card:
    """A question, its answer in a few words, what the answer rests on, and how it was found."""

    id: str
    question: str
    answer: str
    text: list[Markup]
    fine: Markup | None = None


def say(text: str, *values: object) -> Markup:
    """A sentence of ours around values that anybody may have written."""
    return Markup(text).format(*values)


def bold(text: str) -> Markup:
    return say("<b>{}</b>", text)


def join_html(parts: Iterable[str | Markup], limit: int = _LISTED) -> Markup:
    """`a, b and c`, escaped; beyond the limit the rest is counted."""
    escaped = [escape(part) for part in parts]
    if len(escaped) > limit + 1:
        rest = f"{len(escaped) - limit} more (see the table)"
        escaped = [*escaped[:limit], escape(rest)]
    return Markup(join_words(escaped))  # its parts are escaped already


def interval(study: Study, found: Difference) -> str:
    """`95 % CI +1.0 to +2.0`, or what is missing for one."""
    if found.low is not None:
        return f"95 % CI {study.format_interval(found)}"
    return f"no confidence interval {'from one seed' if found.n < 2 else 'as no two seeds differ'}"


def verdict(found: Difference) -> str:
    """At the beginning of a sentence; in reverse order what is significant comes first."""
    if not found.is_tested:
        return "Not tested"
    return "Significant" if found.is_significant else "Not significant"
