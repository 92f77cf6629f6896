"""Which layout loses accuracy, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from markupsafe import Markup

from vshift.compare.groups import AT_CHANCE, Group
from vshift.report.answers.significance import BASELINE_OPTION
from vshift.report.effects import Effect
from vshift.report.layouts import grouped
from vshift.report.sentences import Card, bold, interval, join_html, say
from vshift.report.study import Study
from vshift.runs.schema import column_name
from vshift.text import format_p

_PAIRS = Markup(
    "p of pairs is Welch’s, corrected for all pairs of layouts (Holm); several may be equal, as "
    "none is below that of a clearer pair."
)


def card(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    """The card on the config that loses most, on its layout, and on layouts side by side."""
    question = "Which layout loses accuracy, and how much?"
    duels = _duels(study, pairs)
    if not study.used:
        return Card("loss", question, "No run is done yet", [])
    lost = [group for group in study.used if group.is_at_chance]
    ends = [*_at_chance(study, lost), *duels]
    if not effects:
        return Card("loss", question, "No baseline", [_without_baseline(study), *ends])
    size = attrgetter("value")
    # How much is lost by a network that guesses, or against one, a difference does not say.
    learned = [e for e in effects if not (e.group.is_at_chance or e.other.is_at_chance)]
    at_chance = say("{} at chance level", join_html((g.label for g in lost), 3)) if lost else ""
    worst = max(learned, key=size, default=None)
    if worst is None or worst.value <= 0:
        none = f"No {'other ' if lost else ''}config has a higher {{}} than {{}}."
        text = [say(none, column_name(study.score), bold(worst.other.label))] if worst else []
        return Card("loss", question, at_chance or "None", [*text, *ends])
    sentences = [_difference(study, worst, "The largest difference")]
    headline = _in_words(study, worst)
    surest = max((e for e in learned if e.found.is_significant), key=size, default=worst)
    if surest is not worst and surest.value > 0:
        sentences.append(_difference(study, surest, "The largest significant one"))
        value = study.format_score(surest.value, "+")
        headline += f". Significant: {surest.group.label} {value}, {format_p(surest.found.p)}"
    losses = grouped((e.group.noise.layout, e.value) for e in learned)
    if len(losses) > 1:
        parts = [say("{} {}", bold(name), _range(study, own)) for name, own in losses.items()]
        sentences.append(say("By layout, in {}: {}.", study.unit, join_html(parts)))
    tested = [e for e in learned if e.found.is_tested]
    significant = [bold(e.group.label) for e in tested if e.found.is_significant]
    if tested and not significant:
        sentences.append(Markup("None of these differences is significant (next answer)."))
    elif len(significant) < len(tested):
        sentences.append(say("Significant: {} (next answer).", join_html(significant)))
    fine = _PAIRS if any(e.found.is_tested for e in pairs) else None
    return Card("loss", question, at_chance or headline, [*sentences, *ends], fine)


def _in_words(study: Study, effect: Effect) -> str:
    """`last-bn-0.5: +15.82 points (95 % CI −56.78 to +88.42), not significant, p = 0.575`."""
    found = effect.found
    begin = f"{effect.group.label}: {study.format_score(effect.value, '+')}{study.points}"
    if not found.is_tested:
        return f"{begin}, not tested ({found.untested})"
    word = "significant" if found.is_significant else "not significant"
    return f"{begin} ({interval(study, found)}), {word}, {format_p(found.p)}"


def _difference(study: Study, effect: Effect, which: str) -> Markup:
    """The scores of a config and of the baseline."""
    strength = effect.group.noise.strength_in_words
    return say(
        "{} is that of {}{}: {} {} more than {} ({} against {}).",
        which,
        bold(effect.group.label),
        f" ({strength})" if strength else "",
        bold(study.format_score(effect.value)),
        study.unit,
        effect.other.label,
        _mean(study, effect.group),
        _mean(study, effect.other),
    )


def _duels(study: Study, pairs: Sequence[Effect]) -> list[Markup]:
    """Two layouts at the same strengths: a sentence per layout, with all that lose less."""
    by_pair = grouped(
        (
            (e.group.noise.layout, e.other.noise.layout),
            f"{study.format_score(e.value, '+')} at {e.group.noise.strength_in_words} "
            f"({format_p(e.found.p) or e.found.untested})",
        )
        for e in pairs
    )
    by_layout = grouped(
        (worse, say("{}: {}", bold(better), join_html(own)))
        for (worse, better), own in by_pair.items()
    )
    return [
        say(
            "At the same strength, the {} of {} minus that of {}.",
            column_name(study.score),
            bold(worse),
            Markup("; of ").join(others),
        )
        for worse, others in by_layout.items()
    ]


def _at_chance(study: Study, lost: Sequence[Group]) -> list[Markup]:
    """Which configs do not classify better than guessing; none where none is known to."""
    found = [say("{} ({})", bold(group.label), _mean(study, group)) for group in lost]
    text = f"{AT_CHANCE[:1].upper()}{AT_CHANCE[1:]}: {{}}."
    return [say(text, join_html(found))] if found else []


def _range(study: Study, values: Sequence[float]) -> str:
    """`+1.0 to +2.0`, or one number where all are the same."""
    ends = dict.fromkeys(study.format_score(end, "+") for end in (min(values), max(values)))
    return " to ".join(ends)


def _without_baseline(study: Study) -> Markup:
    """Why there is no baseline, and the best of the configs."""
    clean = [g for g in study.groups if g.config and not g.has_noise]
    labels = join_html(g.label for g in clean)
    if not clean:
        why = Markup("No config is without noise.")
    elif any(group.runs for group in clean):
        why = say("Several configs have no noise: {}.", labels)
    else:
        why = say("Without noise is {}, and none of its runs is done.", labels)
    text = say("{} Name a baseline with {}.", why, BASELINE_OPTION)
    if len(study.used) < 2:
        return text
    best = min(study.used, key=lambda g: np.mean(g.numbers(study.score) or [np.inf]))
    return text + say(" The lowest mean, {}, is that of {}.", _mean(study, best), bold(best.label))


def _mean(study: Study, group: Group) -> str:
    sample = group.sample(study.score)
    percent = " %" if study.score == "test_error" else ""
    return study.format_score(sample.mean if sample else None) + percent
