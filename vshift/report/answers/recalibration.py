"""What recalibration recovers."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from vshift.compare.groups import Group
from vshift.config.recalibration import METHODS
from vshift.report.effects import Effect, Recovered, every_method, recovered
from vshift.report.layouts import grouped
from vshift.report.sentences import Card, bold, interval, join_html, say, verdict
from vshift.report.study import Study
from vshift.runs.schema import column_name


def card(study: Study, effects: Sequence[Effect]) -> Card:
    """The card on the score that recalibration recovers, where it recovers most first.

    Where that is significant anywhere, of the configs in which it is.
    """
    question = "What does recalibration recover?"
    found = recovered(study)
    if not found:
        why = (
            "No run has recalibration.json; recalibration.methods: [precise] makes train write it."
        )
        return Card("recalibration", question, "Not measured", [Markup(why)])
    chosen = max(found, key=lambda r: (r.found.is_significant, r.found.value))
    losses = (e.value for e in effects if e.group is chosen.group and e.value > 0)
    lost = None if chosen.group.is_at_chance else next(losses, None)
    text = [_gain(study, chosen, lost), *_by_method(study, chosen.group)]
    text += _others(study, found, chosen)
    return Card("recalibration", question, _headline(study, chosen, lost), text, _how(study, found))


def _headline(study: Study, chosen: Recovered, lost: float | None) -> str:
    """How much is recovered of what was lost, and whether it is significant."""
    value, points, where = chosen.found.value, study.points, chosen.group.label
    doubt = "" if chosen.found.is_significant else ", not significant"
    doubt = doubt if chosen.found.is_tested else ", not tested"
    doubt = f" (as trained at chance level){doubt}" if chosen.group.is_at_chance else doubt
    if value < 0:
        return f"nothing: it costs {study.format_score(-value)}{points} in {where}{doubt}"
    if lost is not None and value > lost:
        more = study.format_score(value - lost)
        return f"all {study.format_score(lost)}{points} and {more} more in {where}{doubt}"
    of = "" if lost is None else f" of {study.format_score(lost)}"
    return f"{study.format_score(value)}{of}{points} in {where}{doubt}"


def _gain(study: Study, chosen: Recovered, lost: float | None) -> Markup:
    """The same in a sentence, with its interval."""
    value, method, label = chosen.found.value, bold(chosen.method), bold(chosen.group.label)
    change, what = bold(study.format_score(abs(value))), column_name(study.score)
    if lost is not None and value > lost:
        more = bold(study.format_score(value - lost))
        begin = say("{} recovers all of the {} {} that {} lost, and {} more", method,
            study.format_score(lost), study.unit, label, more)  # fmt: skip
    elif lost is not None and value > 0:
        begin = say("{} recovers {} {} of the {} that {} lost", method, change, study.unit,
            study.format_score(lost), label)  # fmt: skip
    else:
        verb = "lowers" if value > 0 else "raises"
        begin = say("{} {} the {} of {} by {}{}", method, verb, what, label, change, study.points)
    significance = chosen.found.verdict(study.points.strip())
    end = say(" ({}). That is {}.", interval(study, chosen.found), significance)
    if lost is not None and 0 < value <= lost:
        left = study.format_score(lost - value)
        end += say(" What is left, {} {}, is what the noise costs in training.", left, study.unit)
    return begin + end


def _by_method(study: Study, group: Group) -> list[Markup]:
    """What each method recovers there, where there are several."""
    methods = every_method(study, group)
    of_each = [f"{r.method} {study.format_score(r.found.value, '+')}" for r in methods]
    text = "In {} by method: {}."
    return [say(text, group.label, join_html(of_each))] if len(methods) > 1 else []


def _others(study: Study, found: Sequence[Recovered], chosen: Recovered) -> list[Markup]:
    """What is recovered of the other configs, by verdict."""
    several = len({r.method for r in found}) > 1
    others = grouped(
        (
            verdict(r.found),
            f"{r.group.label} {study.format_score(r.found.value, '+')}"
            + (f" ({r.method})" if several else ""),
        )
        for r in found
        if r is not chosen
    )
    return [
        say("{}, the other configs: {}.", word, join_html(others[word]))
        for word in sorted(others, reverse=True)
    ]


def _how(study: Study, found: Sequence[Recovered]) -> Markup:
    """How recalibration works and is tested, and the methods that were tried."""
    tried = [m for m in dict.fromkeys(study.recalibration["method"]) if m in METHODS]
    words = "; ".join(f"{method}, {METHODS[method].words}" for method in tried)
    return say(
        "Recalibration re-estimates BN’s statistics after training, with noise off; the weights "
        "stay. Each run is its own before and after, so intervals and p are those of the paired t "
        "test over seeds, p corrected for all configs (Holm). By the method that a config lists "
        "first ({}), which need not be the best.{}",
        join_html(dict.fromkeys(r.method for r in found)),
        f" Methods: {words}." if len(tried) > 1 else "",
    )
