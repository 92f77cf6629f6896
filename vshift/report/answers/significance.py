"""Which differences are significant."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from vshift.compare.groups import Group
from vshift.report.effects import Effect, distinct, same_trainings
from vshift.report.layouts import grouped
from vshift.report.sentences import Card, bold, interval, join_html, say, verdict
from vshift.report.study import Study
from vshift.text import format_p

BASELINE_OPTION = Markup("<code>--baseline</code>")


def card(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    """The card on the test of each difference from the baseline, or between layouts."""
    question = "Is each difference significant?"
    compared = effects or pairs  # without a baseline layouts are compared with each other
    tested = [e for e in compared if e.found.is_tested]
    if not compared:
        why = say("Differences are taken to a baseline, and there is none; {} names one.",
            BASELINE_OPTION)  # fmt: skip
        return Card("significance", question, "Nothing to compare", [why] if study.used else [])
    if not tested:
        why = Markup(
            "Testing a difference needs at least two seeds per side that differ; three or more are "
            "better."
        )
        return Card("significance", question, "None can be tested", [why])
    significant = [e for e in tested if e.found.is_significant]
    fine = "Last epoch’s scores over seeds. Intervals and p are Welch’s. "
    count = max(e.found.tests for e in tested)
    if count > 1:
        fine += (
            f"p is corrected for the {count} comparisons of this page (Holm), so that a page with "
            "fewer can have a smaller p for the same runs. “alone” is p without this correction; "
            "intervals are without it too. "
        )
    fine += "Significant: p below 0.05."
    text = _by_significance(study, compared, effects[0].other if effects else None)
    answer = f"{distinct(significant) or 'None'} of {distinct(tested)}"
    return Card("significance", question, answer, text, Markup(fine))


def _by_significance(study: Study, compared: Sequence[Effect], base: Group | None) -> list[Markup]:
    """The significant differences, the others, those not tested, and which are the same."""
    parts: dict[str, list[Markup]] = {}
    for effect in compared:
        found = effect.found
        if not found.is_tested:
            continue
        p = format_p(found.p)
        if found.tests > 1 and found.p != found.p_value:
            p += f", alone {format_p(found.p_value).removeprefix('p = ').removeprefix('p ')}"
        sentence = say(
            "{}{} {} ({}{}{})",
            bold(effect.group.label),
            "" if base else f" against {effect.other.label}",
            study.format_score(found.value, "+"),
            f"{interval(study, found)}, " if found.is_significant else "",
            p,
            found.seeds_hint,
        )
        parts.setdefault(verdict(found), []).append(sentence)
    text = []
    for word in sorted(parts, reverse=True):
        against = f" against the baseline, {base.label}" if base and word == "Significant" else ""
        text.append(say("{}{}: {}.", word, against, join_html(parts[word])))
    untested = grouped((e.found.untested, e.group.label) for e in compared if e.found.untested)
    for why, labels in untested.items():
        text.append(say("Not tested ({}): {}.", why, join_html(labels)))
    for labels in same_trainings([e.group for e in compared if e.found.is_tested]):
        text.append(say("{} are the same trainings and count once.", join_html(labels)))
    return text
