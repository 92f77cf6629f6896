"""Whether each difference is more than chance, in words."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from vshift.report.data import Study
from vshift.report.effects import Effect, distinct
from vshift.report.prose import (
    Card,
    amount,
    bold,
    interval,
    joined,
    listed,
    p_text,
    say,
    seeds_text,
)  # fmt: skip

QUESTION = "Is each difference more than chance?"
OPTION = Markup("<code>--baseline</code>")


def chance(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    if not effects and pairs:
        return _chance_of_pairs(study, pairs)
    tested = [e for e in effects if e.testable]
    if not effects:
        why = say("Differences are taken to a baseline, and there is none; {} names one.", OPTION)
        return Card("chance", QUESTION, "Nothing to compare", [why] if study.used else [])
    if not tested:
        why = Markup(
            "A difference can be told from chance from two seeds a side on, and well from three on."
        )
        return Card("chance", QUESTION, "One seed cannot tell", [why])
    real = [e for e in tested if e.real]
    text: list[Markup] = []
    if real:
        parts = [_with_p(study, e) for e in real]
        text.append(say("More than chance against {}: {}.", real[0].other.label, listed(parts)))
    text += _unclear(study, [e for e in tested if not e.real])
    same = [e.group.label for e in effects if e.is_same]
    if same:
        base = effects[0].other.label
        text.append(say("The baseline {} itself under another name: {}.", base, listed(same)))
    untested = [e.group.label for e in effects if not e.testable and not e.is_same]
    if untested:
        text.append(say("With one seed only, so not tested: {}.", listed(untested)))
    text += _counted_once(tested)
    return _card(tested, text)


def _card(tested: Sequence[Effect], text: list[Markup]) -> Card:
    """How many of the differences are more than chance, each training once."""
    real = [e for e in tested if e.real]
    answer = f"{distinct(real)} of {distinct(tested)} are"
    return Card("chance", QUESTION, answer, text, _fine(tested))


def _fine(tested: Sequence[Effect]) -> Markup:
    text = "Last epoch’s scores over seeds. Intervals and p are Welch’s. "
    count = max(effect.tests for effect in tested)
    if count > 1:
        text += (
            f"p is corrected for the {count} comparisons of this page (Holm), so that a page with "
            "fewer can have a smaller p for the same runs; “alone” is p without that, and so are "
            "intervals. "
        )
    return Markup(text + "More than chance: p below 0.05.")


def _p_both_ways(effect: Effect) -> str:
    """`p = 0.089, alone 0.022`."""
    raw = effect.found.p_value
    if effect.tests < 2 or raw is None or effect.p == raw:
        return p_text(effect.p)
    return f"{p_text(effect.p)}, alone {p_text(raw).removeprefix('p = ').removeprefix('p ')}"


def _counted_once(effects: Sequence[Effect]) -> list[Markup]:
    names: dict[frozenset[tuple[str, int]], list[str]] = {}
    for effect in effects:
        names.setdefault(effect.group.observed, []).append(effect.group.label)
    return [
        say("{} are the same trainings and count once.", joined(labels))
        for observed, labels in names.items()
        if observed and len(labels) > 1
    ]


def _chance_of_pairs(study: Study, pairs: Sequence[Effect]) -> Card:
    """Without a baseline: layouts against each other."""
    tested = [e for e in pairs if e.testable]
    if not tested:
        return Card("chance", QUESTION, "One seed cannot tell", [])
    parts = [
        say(
            "{} against {} {} ({}, {}{})",
            bold(e.group.label),
            e.other.label,
            amount(study, e.value, "+"),
            interval(study, e.found),
            _p_both_ways(e),
            _seeds(e),
        )
        for e in tested
    ]
    text = [say("Layouts at the same strength: {}.", listed(parts))]
    return _card(tested, text)


def _unclear(study: Study, unclear: Sequence[Effect]) -> list[Markup]:
    """Those that chance could make, and about how many seeds would tell."""
    if not unclear:
        return []
    parts = [
        say(
            "{} {} ({}{})",
            bold(e.group.label),
            amount(study, e.value, "+"),
            _p_both_ways(e),
            _seeds(e),
        )
        for e in unclear
    ]
    return [say("Not told from chance: {}.", listed(parts))]


def _seeds(effect: Effect) -> str:
    """Only of what chance could make."""
    needed = "" if effect.real else seeds_text(effect.seeds_needed)
    return f"; {needed}" if needed else ""


def _with_p(study: Study, effect: Effect) -> Markup:
    return say(
        "{} {} ({}, {})",
        bold(effect.group.label),
        amount(study, effect.value, "+"),
        interval(study, effect.found),
        _p_both_ways(effect),
    )
