"""What recalibration gave back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from vshift.compare.statistics import adjust, paired
from vshift.config.recalibration import METHODS
from vshift.report.data import Study
from vshift.report.effects import Effect, Tested, most_affected
from vshift.report.groups import Group
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
    seeds_text,
    unit,
)  # fmt: skip
from vshift.text import escape_control


@dataclass(frozen=True, kw_only=True)
class Gain(Tested):
    """What a way to re-estimate the statistics gave back in a group, each run before and after."""

    group: Group
    method: str


def gains(study: Study) -> list[Gain]:
    """Each group's gain with the method that its config lists first (not the best one by test)."""
    result, every = [], _scores(study)
    for group in study.used:
        of = every.get(group.label, {})
        methods = list(dict.fromkeys(method for _, method in of if method != "none"))
        first = next((run.summary.get("recalibration") for run in group.runs), None)
        first = escape_control(first) if isinstance(first, str) else None
        gain = _gain(group, of, first if first in methods else next(iter(methods), ""))
        if gain is not None:
            result.append(gain)
    adjusted = adjust([gain.found for gain in result], list(map(_test, result)))
    return [replace(gain, found=d) for gain, d in zip(result, adjusted, strict=True)]


def _test(gain: Gain) -> tuple[object, ...]:
    """What two gains share if they are one test: the trainings, and how they are re-estimated."""
    return gain.group.observed or gain.group.label, str(gain.group.config.get("recalibration"))


def every_method(study: Study, group: Group) -> list[Gain]:
    """A group's gain with each of the methods that were tried, in their order; no tests."""
    of = _scores(study).get(group.label, {})
    methods = dict.fromkeys(method for _, method in of if method != "none")
    found = (_gain(group, of, method) for method in methods)
    return [gain for gain in found if gain is not None]


def _scores(study: Study) -> dict[str, dict[tuple[int, str], float]]:
    """Group label → (seed, method) → score; `none` is as trained."""
    columns = study.recalibration[["group", "seed", "method", "value"]]
    found: dict[str, dict[tuple[int, str], float]] = {}
    for label, seed, method, value in columns.itertuples(index=False, name=None):
        found.setdefault(label, {})[seed, method] = value
    return found


def _gain(group: Group, of: dict[tuple[int, str], float], method: str) -> Gain | None:
    seeds = [seed for seed, name in of if name == "none" and (seed, method) in of]
    found = paired(of[seed, "none"] - of[seed, method] for seed in seeds)
    return None if found is None else Gain(group=group, method=method, found=found)


def recalibration(study: Study, effects: Sequence[Effect]) -> Card:
    """What came back of what the most affected config lost, and of the others."""
    question = "What did recalibration give back?"
    found = gains(study)
    if not found:
        why = (
            "No run has recalibration.json; recalibration.methods: [precise] makes train write it."
        )
        return Card("recalibration", question, "Not measured", [Markup(why)])
    worst = most_affected(study, effects)
    chosen = next((g for g in found if g.group is worst), None) or max(found, key=lambda g: g.value)
    lost = next((e.value for e in effects if e.group is chosen.group and e.value > 0), None)
    text = [_sentence(study, chosen, lost), *_lists(study, chosen, found)]
    names = joined(dict.fromkeys(gain.method for gain in found))
    fine = say(
        "Recalibration re-estimates BN’s statistics after training, with noise off; the weights "
        "stay. Each run is its own before and after, so intervals and p are those of the paired t "
        "test over seeds, p corrected for all configs (Holm). By the method that a config lists "
        "first ({}), which need not be the best.{}",
        names,
        _methods_in_words(study),
    )
    of = "" if lost is None else f" of {amount(study, lost)}"
    doubt = ", which chance could make" if chosen.testable and not chosen.real else ""
    answer = f"{amount(study, chosen.value)}{of}{points(study)} in {chosen.group.label}{doubt}"
    return Card("recalibration", question, answer, text, fine)


# docs/science.md defines them.
def _methods_in_words(study: Study) -> Markup:
    """What the methods are, where there are several."""
    tried = [m for m in dict.fromkeys(study.recalibration["method"]) if m in METHODS]
    if len(tried) < 2:
        return Markup("")
    return say(" Methods: {}.", Markup("; ").join(f"{m}, {METHODS[m].words}" for m in tried))


def _sentence(study: Study, gain: Gain, lost: float | None) -> Markup:
    method, group = bold(gain.method), bold(gain.group.label)
    if lost is None or gain.value <= 0:
        change = bold(amount(study, abs(gain.value)))
        verb = "lowers" if gain.value > 0 else "raises"
        what = "the test error" if study.score == "test_error" else "the test loss"
        text = say("{} {} {} of {} by {}{}", method, verb, what, group, change, points(study))
    else:
        back = bold(amount(study, gain.value))
        text = say("{} gives {} back {} {} of the {} it lost", method, group, back, unit(study),
            amount(study, lost))  # fmt: skip
    return text + say(" ({}). {}", interval(study, gain.found), _verdict(gain))


def _verdict(gain: Gain) -> str:
    if gain.real:
        return f"That is more than chance ({p_text(gain.p)})."
    if not gain.testable and gain.found_n < 2:
        return "From one seed nobody can tell that from chance."
    if not gain.testable:
        return "It is the same for every seed, so there is no spread to test it by."
    needed = seeds_text(gain.seeds_needed)
    return f"Chance could make that ({p_text(gain.p)}{'; ' if needed else ''}{needed})."


def _lists(study: Study, chosen: Gain, found: list[Gain]) -> list[Markup]:
    """The other methods, and the other configs by whether chance could make their gain."""
    text = []
    methods = every_method(study, chosen.group)
    if len(methods) > 1:
        parts = [say("{} {}", gain.method, amount(study, gain.value, "+")) for gain in methods]
        text.append(say("There by method: {}.", joined(parts)))
    others = [gain for gain in found if gain is not chosen]
    for real, what in ((True, "More than chance"), (False, "Not told from chance")):
        some = [gain for gain in others if gain.real is real]
        if some:
            parts = [say("{} {}", g.group.label, amount(study, g.value, "+")) for g in some]
            text.append(say("{}, the other configs: {}.", what, listed(parts)))
    return text
