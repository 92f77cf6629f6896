"""The answers in words: one card a question, at the top of the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from vshift.compare.groups import NO_NOISE
from vshift.report.causes import beginning, prediction
from vshift.report.chance import OPTION, chance
from vshift.report.data import Study
from vshift.report.effects import (
    Effect,
    against_baseline,
    between_layouts,
    scores,
    worst_of,
)
from vshift.report.gains import recalibration
from vshift.report.groups import Group, entries_of, strengths_in_words
from vshift.report.prose import (
    Card,
    amount,
    bold,
    interval,
    joined,
    listed,
    points,
    say,
    unit,
)  # fmt: skip


def cards(study: Study) -> list[Card]:
    """The page's answers, in reading order."""
    effects, pairs = against_baseline(study), between_layouts(study)
    return [
        _loss(study, effects, pairs),
        chance(study, effects, pairs),
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
    strength = worst.group.noise.strength_in_words
    text = say(
        "{}{} loses most: {} {} more than {} ({} against {}; {}).",
        bold(worst.group.label),
        f" ({strength})" if strength else "",
        bold(amount(study, worst.value)),
        unit(study),
        base.label,
        _mean(study, worst.group),
        _mean(study, base),
        interval(study, worst.found),
    )
    return Card(
        "loss",
        question,
        _headline(study, effects, worst),
        [text, *_layouts(study, effects), *_sure(effects), *_duel(study, pairs)],
        STAR if any(e.real for e in pairs) else Markup(""),
    )


def _headline(study: Study, effects: Sequence[Effect], worst: Effect) -> str:
    """What the layout costs, with the rate that it costs that at, or the range over all rates."""
    noise = worst.group.noise
    if noise.layout == NO_NOISE:
        return f"{worst.group.label}: {amount(study, worst.value, '+')}{points(study)}"
    family = [e for e in effects if e.group.noise.layout == noise.layout]
    strengths = {e.group.noise.strength for e in family}
    low, high = (amount(study, end(e.value for e in family), "+") for end in (min, max))
    if len(strengths) == 1 and low == high:
        at = f" at {noise.strength_in_words}" if noise.strength else ""
        return f"{noise.layout}{at}: {high}{points(study)}"
    if len(strengths) < len(family):
        over = f"{len(family)} configs"
    else:
        over = strengths_in_words([e.group.noise for e in family])
    return f"{noise.layout}: {low} to {high}{points(study)} over {over}"


def _without_baseline(study: Study) -> Markup:
    text = say("{} Name a baseline with {}.", why_no_baseline(study), OPTION)
    if len(study.used) < 2:
        return text
    best = min(study.used, key=lambda g: np.mean(scores(g, study.score) or [np.inf]))
    return text + say(" The lowest mean, {}, is that of {}.", _mean(study, best), bold(best.label))


def why_no_baseline(study: Study) -> Markup:
    """Why no config is the one to compare with."""
    clean = [group for group in study.groups if group.config and not entries_of(group.config)]
    if not clean:
        return Markup("No config is without noise.")
    labels = listed(group.label for group in clean)
    if not any(group.runs for group in clean):
        return say("Without noise is {}, and none of its runs is done.", labels)
    return say("Several configs have no noise: {}.", labels)


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


def _sure(effects: Sequence[Effect]) -> list[Markup]:
    """Which of the losses are no accident, where some may be."""
    tested = [e for e in effects if e.testable]
    real = [bold(e.group.label) for e in tested if e.real]
    if not tested or len(real) == len(tested):
        return []
    if not real:
        return [Markup("None of these differences is more than chance (next answer).")]
    return [say("More than chance: only {} (next answer).", listed(real))]


def _duel(study: Study, pairs: Sequence[Effect]) -> list[Markup]:
    """Layouts against each other at the same noise variance."""
    sentences = []
    for a, b in dict.fromkeys((e.group.noise.layout, e.other.noise.layout) for e in pairs):
        own = [e for e in pairs if (e.group.noise.layout, e.other.noise.layout) == (a, b)]
        parts = [
            say(
                "{} at {}{}",
                amount(study, e.value, "+"),
                e.group.noise.strength_in_words,
                _mark(e),
            )
            for e in own
        ]
        sentences.append(
            say("At the same strength, {} costs more than {}: {}.", bold(a), bold(b), joined(parts))
        )
    return sentences


STAR = Markup("* more than chance at 5 %, corrected for all pairs of layouts (Holm).")


def _mark(effect: Effect) -> str:
    return "*" if effect.real else ""
