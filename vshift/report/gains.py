"""What recalibration gave back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vshift.compare.statistics import LEVEL, Sample, describe, holm
from vshift.compare.text import visible
from vshift.report.data import Study
from vshift.report.effects import Effect, most_affected
from vshift.report.groups import Group
from vshift.report.prose import Card, amount, bold, joined, listed, points, say, unit


@dataclass(frozen=True)
class Gain:
    """What a method gave back to a group: score as trained less score with it, seed by seed."""

    group: Group
    method: str
    value: float
    n: int
    p: float | None


def gains(study: Study) -> list[Gain]:
    """Each group's gain with the method that its config lists first (not the best one by test)."""
    result = []
    for group in study.used:
        of = _scores(study, group)
        methods = list(dict.fromkeys(method for _, method in of if method != "none"))
        first = next((run.summary.get("recalibration") for run in group.runs), None)
        first = visible(first) if isinstance(first, str) else None
        gain = _gain(group, of, first if first in methods else next(iter(methods), ""))
        if gain is not None:
            result.append(gain)
    return result


def every_method(study: Study, group: Group) -> list[Gain]:
    """A group's gain with each of the methods that were tried, in their order."""
    of = _scores(study, group)
    methods = dict.fromkeys(method for _, method in of if method != "none")
    found = (_gain(group, of, method) for method in methods)
    return [gain for gain in found if gain is not None]


def _scores(study: Study, group: Group) -> dict[tuple[int, str], float]:
    """(seed, method) → score; `none` is as trained."""
    rows = study.recalibration[study.recalibration["group"] == group.label]
    columns = rows[["seed", "method", "value"]].itertuples(index=False, name=None)
    return {(seed, method): value for seed, method, value in columns}


def _gain(group: Group, of: dict[tuple[int, str], float], method: str) -> Gain | None:
    seeds = [seed for seed, name in of if name == "none" and (seed, method) in of]
    gained = describe(of[seed, "none"] - of[seed, method] for seed in seeds)
    if gained is None:
        return None
    return Gain(group, method, gained.mean, gained.n, _paired(gained))


def _paired(gained: Sample) -> float | None:
    """p of no gain: Student's t test of the seeds' own differences."""
    from scipy import special

    if not gained.sd:
        return None
    t = gained.mean / (gained.sd / gained.n**0.5)
    return 2 * float(special.stdtr(gained.n - 1, -abs(t)))


def recalibration(study: Study, effects: Sequence[Effect]) -> Card:
    """What came back of what the most affected config lost, and of the others."""
    question = "What did recalibration give back?"
    found = gains(study)
    if not found:
        why = (
            "No run has recalibration.json; recalibration.methods: [precise] makes train write it."
        )
        return Card("recalibration", question, "Not measured", [Markup(why)])
    adjusted = holm([gain.p for gain in found])
    real = [g for g, p in zip(found, adjusted, strict=True) if p is not None and p < LEVEL]
    worst = most_affected(study, effects)
    chosen = next((g for g in found if g.group is worst), None) or max(found, key=lambda g: g.value)
    lost = next((e.value for e in effects if e.group is chosen.group and e.value > 0), None)
    text = [_sentence(study, chosen, lost)]
    if chosen not in real:
        text[0] += Markup(" Chance could make that.")
    text += _lists(study, chosen, found, real)
    names = joined(dict.fromkeys(gain.method for gain in found))
    fine = say("By the method that a config lists first ({}), which need not be the best.", names)
    of = "" if lost is None else f" of {amount(study, lost)}"
    answer = f"{amount(study, chosen.value)}{of}{points(study)}"
    return Card("recalibration", question, answer, text, fine)


def _sentence(study: Study, gain: Gain, lost: float | None) -> Markup:
    method, group = bold(gain.method), bold(gain.group.label)
    if lost is None or gain.value <= 0:
        change = bold(amount(study, -gain.value, "+"))
        return say("{} changes {} by {} {}.", method, group, change, unit(study))
    back = bold(amount(study, gain.value))
    text = "{} gives {} back {} {} of the {} it lost."
    return say(text, method, group, back, unit(study), amount(study, lost))


def _lists(study: Study, chosen: Gain, found: list[Gain], real: list[Gain]) -> list[Markup]:
    """The other methods, and the other configs by whether chance could make their gain."""
    text = []
    methods = every_method(study, chosen.group)
    if len(methods) > 1:
        parts = [say("{} {}", gain.method, amount(study, gain.value, "+")) for gain in methods]
        text.append(say("There by method: {}.", joined(parts)))
    if real:
        text.append(
            say("More than chance (paired t test over seeds, Holm): {}.", _shown(study, real))
        )
    rest = [gain for gain in found if gain not in real]
    if rest:
        text.append(say("Not told from chance: {}.", _shown(study, rest)))
    return text


def _shown(study: Study, some: Sequence[Gain]) -> Markup:
    return listed(say("{} {}", g.group.label, amount(study, g.value, "+")) for g in some)
