"""The answers in words: one card a question, at the top of the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from vshift.report.causes import beginning, prediction
from vshift.report.data import Study
from vshift.report.effects import Effect, against_baseline, between_layouts, scores, worst_of
from vshift.report.gains import recalibration
from vshift.report.groups import NO_NOISE, Group
from vshift.report.prose import (
    Card,
    amount,
    bold,
    interval,
    joined,
    listed,
    p_text,
    points,
    say,
    unit,
)  # fmt: skip


def cards(study: Study) -> list[Card]:
    """The page's answers, in reading order."""
    effects, pairs = against_baseline(study), between_layouts(study)
    return [
        _loss(study, effects, pairs),
        _chance(study, effects, pairs),
        beginning(study, effects),
        prediction(study),
        recalibration(study, effects),
    ]


def _loss(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Which layout loses accuracy, and how much?"
    if not study.used:
        return Card("loss", question, "No run is done yet", [])
    if not effects:
        return Card(
            "loss", question, "No baseline", [_without_baseline(study), *_duel(study, pairs)]
        )
    worst = worst_of(effects)
    if worst.value <= 0:
        text = say("No config has a higher test error than {}.", bold(worst.other.label))
        return Card("loss", question, "None", [text, *_duel(study, pairs)])
    base = worst.other
    text = say(
        "{} loses most: {} {} more than {} ({} against {}; {}).",
        bold(worst.group.label),
        bold(amount(study, worst.value)),
        unit(study),
        base.label,
        _mean(study, worst.group),
        _mean(study, base),
        interval(study, worst),
    )
    layout = worst.group.noise.layout
    answer = layout if layout != NO_NOISE else worst.group.label
    if worst.testable and not worst.real:
        text += Markup(" Chance could make that: see the next answer.")
    return Card(
        "loss",
        question,
        f"{answer}: {amount(study, worst.value, '+')}{points(study)}",
        [text, *_layouts(study, effects), *_duel(study, pairs)],
        STAR if any(e.real for e in pairs) else Markup(""),
    )


def _without_baseline(study: Study) -> Markup:
    best = min(study.used, key=lambda g: np.mean(scores(g, study.score) or [np.inf]))
    return say(
        "There is no single config without noise to compare with; name one with --baseline. "
        "The lowest mean, {}, is that of {}.",
        _mean(study, best),
        bold(best.label),
    )


def _mean(study: Study, group: Group) -> str:
    values = scores(group, study.score)
    mean = sum(values) / len(values) if values else None
    return amount(study, mean) + (" %" if study.score == "test_error" else "")


def _layouts(study: Study, effects: Sequence[Effect]) -> list[Markup]:
    """The range of losses of each layout, where there are several."""
    names = list(dict.fromkeys(e.group.noise.layout for e in effects))
    if len(names) < 2:
        return []
    parts = []
    for name in names:
        values = [e.value for e in effects if e.group.noise.layout == name]
        low, high = (amount(study, v, "+") for v in (min(values), max(values)))
        parts.append(say("{} {}", bold(name), low if len(values) == 1 else f"{low} to {high}"))
    return [say("By layout, {}: {}.", unit(study), joined(parts))]


def _duel(study: Study, pairs: Sequence[Effect]) -> list[Markup]:
    """Layouts against each other at the same noise variance."""
    sentences = []
    for a, b in dict.fromkeys((e.group.noise.layout, e.other.noise.layout) for e in pairs):
        own = [e for e in pairs if (e.group.noise.layout, e.other.noise.layout) == (a, b)]
        parts = [
            say("{} at {}{}", amount(study, e.value, "+"), e.group.noise.strength, _mark(e))
            for e in own
        ]
        sentences.append(
            say("With the same noise, {} costs more than {}: {}.", bold(a), bold(b), joined(parts))
        )
    return sentences


STAR = Markup("* more than chance at 5 %, corrected for all pairs of layouts (Holm).")


def _mark(effect: Effect) -> str:
    return "*" if effect.real else ""


def _chance(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Is each difference more than chance?"
    tested = [e for e in effects if e.testable]
    if not effects:
        return Card("chance", question, "Nothing to compare", [])
    if not tested:
        why = Markup(
            "A difference can be told from chance from two seeds a side on, and well from three on."
        )
        return Card("chance", question, "One seed cannot tell", [why])
    real = [e for e in tested if e.real]
    text: list[Markup] = []
    if real:
        parts = [_with_p(study, e) for e in real]
        text.append(say("More than chance against {}: {}.", real[0].other.label, listed(parts)))
    text += _unclear(study, [e for e in tested if not e.real], len(tested))
    untested = [e.group.label for e in effects if not e.testable]
    if untested:
        text.append(say("With one seed only, so not tested: {}.", listed(untested)))
    fine = Markup(
        "Last epoch’s scores over seeds. Intervals and p are Welch’s; p is corrected for all "
        "comparisons (Holm), an interval is for one alone."
    )
    return Card("chance", question, f"{len(real)} of {len(tested)} are", text, fine)


def _unclear(study: Study, unclear: Sequence[Effect], count: int) -> list[Markup]:
    """Those that chance could make, and about how many seeds would tell."""
    if not unclear:
        return []
    parts = [
        say("{} {}{}", bold(e.group.label), amount(study, e.value, "+"), _seeds(e)) for e in unclear
    ]
    return [say("Not told from chance, as one of {}: {}.", count, listed(parts))]


def _seeds(effect: Effect) -> str:
    needed = effect.seeds_needed
    return "" if needed is None else f" (about {needed:,} seeds a side would tell)"


def _with_p(study: Study, effect: Effect) -> Markup:
    sign = "" if p_text(effect).startswith("<") else "= "
    return say(
        "{} {} ({}, p {}{})",
        bold(effect.group.label),
        amount(study, effect.value, "+"),
        interval(study, effect),
        sign,
        p_text(effect),
    )
