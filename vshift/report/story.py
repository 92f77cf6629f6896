"""The answers in words: one card a question, at the top of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from vshift.compare.statistics import LEVEL, holm
from vshift.compare.text import fixed, visible
from vshift.report.data import Study
from vshift.report.effects import Effect, against_baseline, between_layouts, scores
from vshift.report.groups import NO_NOISE, Group
from vshift.runs.reading import number

# From this ratio on a layer counts as shifted. A network without noise has 1.02 or so, as its weights
# move while BN takes its average.
SHIFTED = 1.05
_ERRORS = 3.0


@dataclass(frozen=True)
class Card:
    """A question, its answer in a few words, what the answer rests on, and how it was found."""

    id: str
    question: str
    answer: str
    text: list[Markup]
    fine: Markup = Markup("")


def cards(study: Study) -> list[Card]:
    """The page's answers, in reading order."""
    effects, pairs = against_baseline(study), between_layouts(study)
    return [
        _loss(study, effects, pairs),
        _chance(study, effects, pairs),
        _beginning(study, effects),
        _prediction(study),
        _recalibration(study, effects),
    ]


def bold(text: str) -> Markup:
    return Markup("<b>{}</b>").format(text)


def joined(parts: Iterable[str | Markup]) -> Markup:
    """`a, b and c`, escaped."""
    parts = list(parts)
    if len(parts) < 2:
        return Markup("").join(parts)
    return Markup(", ").join(parts[:-1]) + Markup(" and ") + parts[-1]


def say(text: str, *values: object) -> Markup:
    """A sentence of ours around values that anybody may have written."""
    return Markup(text).format(*values)


def amount(study: Study, value: float | None, sign: str = "") -> str:
    return fixed(value, 2 if study.score == "test_error" else 4, sign)


def interval(study: Study, effect: Effect) -> str:
    """`95 % CI 1.0 to 2.0`, or what is missing for one."""
    low, high = effect.found.low, effect.found.high
    if low is None or high is None:
        return "no confidence interval from one seed"
    return f"95 % CI {amount(study, low, '+')} to {amount(study, high, '+')}"


def _points(study: Study) -> str:
    return " points" if study.score == "test_error" else ""


def unit(study: Study) -> str:
    return "points of test error" if study.score == "test_error" else "of test loss"


# ---- which layout loses ------------------------------------------------------------------------


def _loss(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Which layout loses accuracy, and how much?"
    if not study.used:
        return Card("loss", question, "No run is done yet", [])
    if not effects:
        return Card("loss", question, "No baseline", [_without_baseline(study), *_duel(study, pairs)])
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
        f"{answer}: {amount(study, worst.value, '+')}{_points(study)}",
        [text, *_layouts(study, effects), *_duel(study, pairs)],
        _STAR if any(e.real for e in pairs) else Markup(""),
    )


def worst_of(effects: Sequence[Effect]) -> Effect:
    """The largest loss that is more than chance; where there is none, the largest."""
    return max(effects, key=lambda e: (e.real and e.value > 0, e.value))


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


_STAR = Markup("* more than chance at 5 %, corrected for all pairs of layouts (Holm).")


def _mark(effect: Effect) -> str:
    return "*" if effect.real else ""


# ---- chance ------------------------------------------------------------------------------------


def _chance(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Is each difference more than chance?"
    tested = [e for e in effects if e.testable]
    if not effects:
        return Card("chance", question, "Nothing to compare", [])
    if not tested:
        text = Markup(
            "A difference can be told from chance from two seeds a side on, and well from three on."
        )
        return Card("chance", question, "One seed cannot tell", [text])
    real = [e for e in tested if e.real]
    text = []
    if real:
        parts = [_with_p(study, e) for e in real]
        text.append(say("More than chance against {}: {}.", real[0].other.label, joined(parts)))
    text += _unclear(study, [e for e in tested if not e.real], len(tested))
    untested = [e.group.label for e in effects if not e.testable]
    if untested:
        text.append(say("With one seed only, so not tested: {}.", joined(untested)))
    fine = Markup(
        "Last epoch’s scores over seeds. Intervals and p are Welch’s; p is corrected for all "
        "comparisons (Holm), an interval is for one alone."
    )
    return Card("chance", question, f"{len(real)} of {len(tested)} are", text, fine)


def _unclear(study: Study, unclear: Sequence[Effect], count: int) -> list[Markup]:
    """Those that chance could make: clear if they were the only ones, or too few seeds."""
    text = []
    alone = [e for e in unclear if e.found.p_value is not None and e.found.p_value < LEVEL]
    if alone:
        parts = [say("{} {}", bold(e.group.label), amount(study, e.value, "+")) for e in alone]
        text.append(
            say("Clear if looked at alone, not as one of {}: {}.", count, joined(parts))
        )
    few = [e for e in unclear if e not in alone]
    if few:
        parts = [
            say("{} {} ({})", bold(e.group.label), amount(study, e.value, "+"), _why(study, e))
            for e in few
        ]
        text.append(say("Not told from chance: {}.", joined(parts)))
    return text


def _why(study: Study, effect: Effect) -> str:
    return effect.verdict(_points(study).strip()).removeprefix("cannot tell: ").strip()


def p_text(effect: Effect) -> str:
    if effect.p is None:
        return "–"
    return "< 0.001" if effect.p < 0.001 else fixed(effect.p, 3)


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


# ---- where it begins ---------------------------------------------------------------------------


def beginnings(study: Study) -> dict[str, str | None]:
    """Group → the first layer whose ratio is 1.05 or more and three standard errors above 1."""
    result: dict[str, str | None] = {}
    for label, rows in study.depth.groupby("group", sort=False):
        rows = rows.sort_values("index")
        above = rows[(rows["ratio"] >= SHIFTED) & (rows["ratio"] - 1 > _ERRORS * rows["se"])]
        result[str(label)] = str(above["layer"].iloc[0]) if len(above) else None
    return result


def _beginning(study: Study, effects: Sequence[Effect]) -> Card:
    question = "At which layer does the shift begin?"
    first = beginnings(study)
    if not first:
        why = "No run has a measured shift (measure.every: 0 turns it off, or there is no BN)."
        return Card("begin", question, "Not measured", [Markup(why)])
    worst = _most_affected(study, effects)
    names = list(study.layers)
    where = first.get(worst.label)
    text = []
    if where is not None:
        text.append(_course(study, worst, where))
    for layout in dict.fromkeys(g.noise.layout for g in study.used):
        text.append(_layout_beginning(study, layout, first))
    fine = say("A layer counts as shifted from a ratio of {} on, three standard errors above 1.", SHIFTED)
    if where is None:
        return Card("begin", question, "At none", text, fine)
    answer = f"{study.layers[where]}, layer {names.index(where) + 1} of {len(names)}"
    return Card("begin", question, answer, text, fine)


def _course(study: Study, group: Group, where: str) -> Markup:
    rows = study.depth[study.depth["group"] == group.label].set_index("layer")
    highest = rows["ratio"].idxmax()
    return say(
        "In {}, the shift begins at {} (ratio {}: {} from the noise in front of it, {} inherited) "
        "and is largest at {} ({}).",
        bold(group.label),
        bold(where),
        *(fixed(number(rows[c][where]), 2) for c in ("ratio", "local", "inherited")),
        bold(str(highest)),
        fixed(float(rows["ratio"][highest]), 2),
    )


def _layout_beginning(study: Study, layout: str, first: dict[str, str | None]) -> Markup:
    groups = [g for g in study.used if g.noise.layout == layout and g.label in first]
    places = Counter(first[g.label] for g in groups)
    parts = []
    for place, count in places.items():
        which = joined(g.noise.strength or g.label for g in groups if first[g.label] == place)
        where = "at no layer" if place is None else say("from {} on", study.layers[place])
        parts.append(where if count == len(groups) else say("{} ({})", where, which))
    return say("{}: {}.", bold(layout), joined(map(Markup.escape, parts)))


def _most_affected(study: Study, effects: Sequence[Effect]) -> Group:
    if effects:
        return worst_of(effects).group
    return max(study.used, key=lambda g: g.row["shift_ratio_mean"] or 0.0)


# ---- prediction --------------------------------------------------------------------------------


def _prediction(study: Study) -> Card:
    question = "Did the prediction hold?"
    exact = study.predictions[study.predictions["exact"].astype(bool)]
    if exact.empty:
        why = (
            "No layer has noise in front of it that the formula covers exactly; or the runs do not "
            "say (measure.explain_batches: 0, or an earlier version)."
        )
        return Card("prediction", question, "Nothing to predict", [Markup(why)])
    inside = (exact["local"] - exact["predicted"]).abs() <= _ERRORS * exact["se"]
    expected, batches = _expected_share(study)
    count, share = len(exact), float(inside.mean())
    held = share >= expected - 3 * (expected * (1 - expected) / count) ** 0.5
    off = (exact["local"] / exact["predicted"] - 1).abs()
    text = [
        say(
            "In {} of {} layers of all runs that noise reaches, the measured local ratio lies within "
            "three standard errors of what s² and the weights predict; chance alone would leave {} "
            "% there (errors from {} batches).",
            bold(f"{int(inside.sum())}"),
            count,
            fixed(100 * expected, 0),
            batches,
        ),
        say(
            "Half of them are within {} % of the prediction, the farthest is {} % off ({}, {}).",
            fixed(100 * float(off.median()), 2),
            fixed(100 * float(off.max()), 2),
            exact["group"][off.idxmax()],
            study.layers[exact["layer"][off.idxmax()]],
        ),
    ]
    return Card(
        "prediction",
        question,
        f"{'Yes' if held else 'Not everywhere'}: {fixed(100 * share, 0)} % within 3 s.e.",
        text,
    )


def _expected_share(study: Study) -> tuple[float, int]:
    """How often |t| ≤ 3 with the fewest batches that any run's standard errors come from."""
    from scipy import stats

    sections = [group.config.get("measure") for group in study.used]
    found = [number(s.get("explain_batches")) for s in sections if isinstance(s, dict)]
    batches = int(min((b for b in found if b and b >= 2), default=4))
    return float(1 - 2 * stats.t.sf(_ERRORS, batches - 1)), batches


# ---- recalibration -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """What a method gave back to a group: score as trained less score with it, pairs of one seed."""

    group: Group
    method: str
    value: float
    n: int
    p: float | None


def gains(study: Study) -> list[Gain]:
    """Each group's gain with the method that its config lists first (not the best one by test)."""
    from scipy import stats

    result = []
    for group in study.used:
        rows = study.recalibration[study.recalibration["group"] == group.label]
        table = rows.pivot_table(index="seed", columns="method", values="value")
        method = next((r.summary.get("recalibration") for r in group.runs), None)
        if method not in table or "none" not in table:
            continue
        gained = (table["none"] - table[method]).dropna().to_list()
        if gained:
            p = None
            if len(gained) > 1 and len(set(gained)) > 1:
                p = number(float(stats.ttest_1samp(gained, 0.0).pvalue))
            mean = sum(gained) / len(gained)
            result.append(Gain(group, visible(str(method)), mean, len(gained), p))
    return result


def _recalibration(study: Study, effects: Sequence[Effect]) -> Card:
    question = "What did recalibration give back?"
    found = {gain.group.label: gain for gain in gains(study)}
    if not found:
        why = "No run has recalibration.json; recalibration.methods: [precise] makes train write it."
        return Card("recalibration", question, "Not measured", [Markup(why)])
    worst = _most_affected(study, effects)
    chosen = found.get(worst.label) or max(found.values(), key=lambda gain: gain.value)
    lost = next((e.value for e in effects if e.group is chosen.group and e.value > 0), None)
    of = "" if lost is None else f" of {amount(study, lost)}"
    text = [
        say(
            "{} gives {} back {} {} of the {} it lost.",
            bold(chosen.method), bold(chosen.group.label), bold(amount(study, chosen.value)),
            unit(study), amount(study, lost),
        )
        if lost is not None
        else say("{} changes {} by {} {}.", bold(chosen.method), bold(chosen.group.label),
            bold(amount(study, -chosen.value, "+")), unit(study))
    ]  # fmt: skip
    text += _gain_lists(study, list(found.values()))
    names = joined(dict.fromkeys(gain.method for gain in found.values()))
    fine = say("By the method that a config lists first ({}), which need not be the best.", names)
    answer = f"{amount(study, chosen.value)}{of}{_points(study)}"
    return Card("recalibration", question, answer, text, fine)


def _gain_lists(study: Study, found: list[Gain]) -> list[Markup]:
    adjusted = holm([gain.p for gain in found])
    real = [g for g, p in zip(found, adjusted, strict=True) if p is not None and p < LEVEL]
    rest = [g for g in found if g not in real]
    shown = lambda some: joined(  # noqa: E731
        say("{} {}", g.group.label, amount(study, g.value, "+")) for g in some
    )
    text = []
    if real:
        text.append(say("More than chance (paired t test over seeds, Holm): {}.", shown(real)))
    if rest:
        text.append(say("Not told from chance: {}.", shown(rest)))
    return text
