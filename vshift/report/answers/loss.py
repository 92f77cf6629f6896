"""Which layout loses accuracy, and how much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from vshift.compare.fields import active_noise
from vshift.compare.groups import AT_CHANCE, NO_NOISE, Group
from vshift.report.answers.significance import BASELINE_OPTION
from vshift.report.effects import Effect, worst_of
from vshift.report.layouts import grouped
from vshift.report.sentences import Card, bold, interval, join_html, say
from vshift.report.study import Study
from vshift.runs.schema import column_name
from vshift.text import format_p, natural

_PAIRS = Markup("p of pairs is Welch’s, corrected for all pairs of layouts (Holm).")


def card(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    """The card on the config that loses most, on its layout, and on layouts side by side."""
    question = "Which layout loses accuracy, and how much?"
    duels = _duels(study, pairs)
    if not study.used:
        return Card("loss", question, "No run is done yet", [])
    if not effects:
        return Card("loss", question, "No baseline", [_without_baseline(study), *duels])
    worst = worst_of(effects)
    if worst.value <= 0:
        none = "No config has a higher {} than {}."
        text = say(none, column_name(study.score), bold(worst.other.label))
        return Card("loss", question, "None", [text, *duels])
    sentences = [_most(study, effects, worst)]
    losses = grouped((e.group.noise.layout, e.value) for e in effects)
    if len(losses) > 1:
        parts = [say("{} {}", bold(name), _range(study, own)) for name, own in losses.items()]
        sentences.append(say("By layout, {}: {}.", study.unit, join_html(parts)))
    tested = [e for e in effects if e.found.is_tested]
    significant = [bold(e.group.label) for e in tested if e.found.is_significant]
    if tested and not significant:
        sentences.append(Markup("None of these differences is significant (next answer)."))
    elif len(significant) < len(tested):
        sentences.append(say("Significant: only {} (next answer).", join_html(significant)))
    sentences += _at_chance(study)
    fine = _PAIRS if any(e.found.is_tested for e in pairs) else None
    answer = f"{_headline(study, effects, worst)} ({_tested_in_words(study, effects, worst)})"
    return Card("loss", question, answer, [*sentences, *duels], fine)


def _most(study: Study, effects: Sequence[Effect], worst: Effect) -> Markup:
    """The config that loses most, by how much, and with which interval."""
    strength = worst.group.noise.strength_in_words
    more = any(e.value > worst.value for e in effects)
    return say(
        "{}{} loses most{}: {} {} more than {} ({} against {}; {}).",
        bold(worst.group.label),
        f" ({strength})" if strength else "",
        ", of those that differ significantly" if more else "",
        bold(study.format_score(worst.value)),
        study.unit,
        worst.other.label,
        _mean(study, worst.group),
        _mean(study, worst.other),
        interval(study, worst.found),
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


def _tested_in_words(study: Study, effects: Sequence[Effect], worst: Effect) -> str:
    """What the tests say of the headline's layout: `significant`, `2 of 4 significant`."""
    layout = worst.group.noise.layout
    family = [e for e in effects if layout not in ("", NO_NOISE) and e.group.noise.layout == layout]
    family = family or [worst]
    tested = [e for e in family if e.found.is_tested]
    count = sum(e.found.is_significant for e in tested)
    if not tested:
        return f"not tested: {worst.found.untested}"
    if len(family) == 1:
        return f"{'' if count else 'not '}significant, {format_p(tested[0].found.p)}"
    return f"{count or 'none'} of {len(family)} significant"


def _at_chance(study: Study) -> list[Markup]:
    """Which configs do not classify better than guessing; none where none is known to."""
    lost = [group for group in study.used if group.is_at_chance]
    found = [say("{} ({})", bold(group.label), _mean(study, group)) for group in lost]
    text = f"{AT_CHANCE[:1].upper()}{AT_CHANCE[1:]}: {{}}."
    return [say(text, join_html(found))] if found else []


def _headline(study: Study, effects: Sequence[Effect], worst: Effect) -> str:
    """The cost of a layout, with its rate, or the range over all rates."""
    noise = worst.group.noise
    if noise.layout == NO_NOISE:
        return f"{worst.group.label}: {study.format_score(worst.value, '+')}{study.points}"
    family = [e for e in effects if e.group.noise.layout == noise.layout]
    strengths = {e.group.noise.strength for e in family}
    losses = _range(study, [e.value for e in family])
    if len(strengths) == 1 and " to " not in losses:
        at = f" at {noise.strength_in_words}" if noise.strength else ""
        return f"{noise.layout}{at}: {losses}{study.points}"
    if len(strengths) < len(family):
        over = f"{len(family)} configs"
    else:  # from weak to strong: `rates 0.1 to 0.7`, `β 0.1 to β 0.5`
        noises = [e.group.noise for e in family]
        noises.sort(key=lambda noise: (noise.variance or 0.0, natural(noise.strength)))
        low, high = noises[0].strength, noises[-1].strength
        over = f"{'rates ' if low[:1].isdigit() else ''}{low} to {high}"
    return f"{noise.layout}: {losses}{study.points} over {over}"


def _range(study: Study, values: Sequence[float]) -> str:
    """`+1.0 to +2.0`, or one number where all are the same."""
    ends = dict.fromkeys(study.format_score(end, "+") for end in (min(values), max(values)))
    return " to ".join(ends)


def _without_baseline(study: Study) -> Markup:
    """Why there is no baseline, and the best of the configs."""
    clean = [g for g in study.groups if g.config and not active_noise(g.config)]
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
