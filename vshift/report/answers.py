"""The answers in words: one card per question, at the top of the page.

Names and numbers may have been written by anybody, so sentences are put together by markupsafe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from vshift.compare.fields import active_noise
from vshift.compare.groups import NO_NOISE, Group
from vshift.compare.statistics import Difference
from vshift.config.recalibration import METHODS
from vshift.report.effects import (
    Effect,
    against_baseline,
    between_layouts,
    distinct,
    every_method,
    most_affected,
    recovered,
    same_trainings,
    training_of,
    worst_of,
)
from vshift.report.layouts import grouped
from vshift.report.study import Study
from vshift.runs.read import number
from vshift.runs.schema import column_name
from vshift.text import (
    escape_control,
    format_number,
    format_p,
    join_words,
    natural,
    pluralize,
)

# From this ratio on a layer counts as shifted. A network without noise has about 1.02, as its
# weights move while BN takes its average.
SHIFTED = 1.05
_ERRORS = 3.0  # standard errors that a difference from 1, or from a prediction, must exceed
_LISTED = 10  # names in one sentence; the table below has all


@dataclass(frozen=True)
class Card:
    """A question, its answer in a few words, what the answer rests on, and how it was found."""

    id: str
    question: str
    answer: str
    text: list[Markup]
    fine: Markup | None = None


def cards(study: Study) -> list[Card]:
    """The page's answers, in reading order."""
    effects, pairs = against_baseline(study), between_layouts(study)
    return [
        _loss(study, effects, pairs),
        _significance(study, effects, pairs),
        _beginning(study, effects),
        _prediction(study),
        _recalibration(study, effects),
    ]


# ---- sentences


def say(text: str, *values: object) -> Markup:
    """A sentence of ours around values that anybody may have written."""
    return Markup(text).format(*values)


def bold(text: str) -> Markup:
    return say("<b>{}</b>", text)


def join_html(parts: Iterable[str | Markup], limit: int = _LISTED) -> Markup:
    """`a, b and c`, escaped; beyond the limit the rest is counted."""
    escaped = [escape(part) for part in parts]
    if len(escaped) > limit + 1:
        rest = f"{len(escaped) - limit} more (see the table)"
        escaped = [*escaped[:limit], escape(rest)]
    return Markup(join_words(escaped))  # its parts are escaped already


def _range(study: Study, values: Sequence[float]) -> str:
    """`+1.0 to +2.0`, or one number where all are the same."""
    ends = dict.fromkeys(study.format_score(end, "+") for end in (min(values), max(values)))
    return " to ".join(ends)


def interval(study: Study, found: Difference) -> str:
    """`95 % CI +1.0 to +2.0`, or what is missing for one."""
    if found.low is not None:
        return f"95 % CI {study.format_interval(found)}"
    return f"no confidence interval {'from one seed' if found.n < 2 else 'as no two seeds differ'}"


def verdict(found: Difference) -> str:
    """At the beginning of a sentence; in reverse order what is significant comes first."""
    if not found.is_tested:
        return "Not tested"
    return "Significant" if found.is_significant else "Not significant"


# ---- which layout loses accuracy

_BASELINE_OPTION = Markup("<code>--baseline</code>")
_PAIRS = Markup("p of pairs is Welch’s, corrected for all pairs of layouts (Holm).")
# Standard errors of a binomial share within which an error is that of guessing.
_CHANCE_ERRORS = 3.0


def _loss(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Which layout loses accuracy, and how much?"
    by_pair = grouped(
        (
            (e.group.noise.layout, e.other.noise.layout),
            f"{study.format_score(e.value, '+')} at {e.group.noise.strength_in_words} "
            f"({format_p(e.found.p) or e.found.untested})",
        )
        for e in pairs
    )
    duel = "At the same strength, the {} of {} minus that of {}: {}."
    what = column_name(study.score)
    duels = [say(duel, what, bold(a), bold(b), join_html(own)) for (a, b), own in by_pair.items()]
    if not study.used:
        return Card("loss", question, "No run is done yet", [])
    if not effects:
        return Card("loss", question, "No baseline", [_without_baseline(study), *duels])
    worst = worst_of(effects)
    group, base = worst.group, worst.other
    if worst.value <= 0:
        text = say("No config has a higher {} than {}.", what, bold(base.label))
        return Card("loss", question, "None", [text, *duels])
    strength = group.noise.strength_in_words
    sentences = [
        say(
            "{}{} loses most: {} {} more than {} ({} against {}; {}).",
            bold(group.label),
            f" ({strength})" if strength else "",
            bold(study.format_score(worst.value)),
            study.unit,
            base.label,
            _mean(study, group),
            _mean(study, base),
            interval(study, worst.found),
        )
    ]
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
    chance = _at_chance(study)
    if chance:
        sentences.append(chance)
    fine = _PAIRS if any(e.found.is_tested for e in pairs) else None
    answer = f"{_headline(study, effects, worst)} ({_tested_in_words(study, effects, worst)})"
    return Card("loss", question, answer, [*sentences, *duels], fine)


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


def _at_chance(study: Study) -> Markup:
    """Which configs do not classify better than guessing; empty where none is known to."""
    found = []
    for group in study.used:
        classes = [
            number(run.run.get("classes")) or _CLASSES.get(_data_of(group)) for run in group.runs
        ]
        sections = group.config.get("data")
        section = sections if isinstance(sections, dict) else {}
        images = number(section.get("test_limit")) or number(section.get("test")) or 10_000
        sample = group.sample("test_error")
        if sample is None or not all(classes) or len(set(classes)) > 1:
            continue
        chance = 1 / float(classes[0] or 1)
        error = 100 * (chance * (1 - chance) / images / sample.n) ** 0.5
        if sample.mean >= 100 * (1 - chance) - _CHANCE_ERRORS * error:
            found.append(say("{} ({} %)", bold(group.label), study.format_score(sample.mean)))
    if not found:
        return Markup("")
    return say(
        "At chance level, so that their differences say nothing of how much is lost: {}.",
        join_html(found),
    )


# Of runs that do not record the number of their classes.
_CLASSES = {"shapes": 10.0, "cifar10": 10.0, "cifar100": 100.0}


def _data_of(group: Group) -> str:
    section = group.config.get("data")
    return str(section.get("name")) if isinstance(section, dict) else ""


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
    text = say("{} Name a baseline with {}.", why, _BASELINE_OPTION)
    if len(study.used) < 2:
        return text
    best = min(study.used, key=lambda g: np.mean(g.numbers(study.score) or [np.inf]))
    return text + say(" The lowest mean, {}, is that of {}.", _mean(study, best), bold(best.label))


def _mean(study: Study, group: Group) -> str:
    sample = group.sample(study.score)
    percent = " %" if study.score == "test_error" else ""
    return study.format_score(sample.mean if sample else None) + percent


# ---- which differences are significant


def _significance(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Is each difference significant?"
    compared = effects or pairs  # without a baseline layouts are compared with each other
    tested = [e for e in compared if e.found.is_tested]
    if not compared:
        why = say("Differences are taken to a baseline, and there is none; {} names one.",
            _BASELINE_OPTION)  # fmt: skip
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
            "fewer can have a smaller p for the same runs; “alone” is p without that, and so are "
            "intervals. "
        )
    fine += "Significant: p below 0.05."
    text = _by_significance(study, compared, effects[0].other if effects else None)
    answer = f"{distinct(significant)} of {distinct(tested)} are"
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
        against = f" against {base.label}" if base and word == "Significant" else ""
        text.append(say("{}{}: {}.", word, against, join_html(parts[word])))
    untested = grouped((e.found.untested, e.group.label) for e in compared if e.found.untested)
    for why, labels in untested.items():
        text.append(say("Not tested ({}): {}.", why, join_html(labels)))
    for labels in same_trainings([e.group for e in compared if e.found.is_tested]):
        text.append(say("{} are the same trainings and count once.", join_html(labels)))
    return text


# ---- where the shift begins, and whether the prediction of it held


def _beginning(study: Study, effects: Sequence[Effect]) -> Card:
    question = "At which layer does the noise’s shift begin?"
    noisy = [group for group in study.used if group.noise.layout != NO_NOISE]
    if not noisy:
        question = "At which layer does the shift begin?"
    first = first_shifted(study)
    if not first:
        why = "No run has a measured shift (measure.every: 0 turns it off, or there is no BN)."
        return Card("begin", question, "Not measured", [Markup(why)])
    worst = most_affected(study, effects)
    if first.get(worst.label) is None:  # of the others, the one with the largest shift
        shifted = [group for group in study.used if first.get(group.label) is not None]
        worst = max(shifted, key=_mean_shift, default=worst)
    layer = first.get(worst.label)
    layouts = dict.fromkeys(group.noise.layout for group in noisy or study.used)
    text = [_course(study, worst, layer)] if layer is not None else []
    for layout in layouts:
        groups = [g for g in study.used if g.noise.layout == layout and g.label in first]
        strengths = [g.noise.strength_in_words for g in groups]
        is_told = len(set(strengths)) == len(groups) and all(strengths)
        names = strengths if is_told else [g.label for g in groups]
        layers = grouped((first[g.label], name) for g, name in zip(groups, names, strict=True))
        parts = []
        for found, those in layers.items():
            where = "at no layer" if found is None else f"first at {escape_control(found)}"
            which = join_html(those)
            parts.append(where if len(layers) == 1 else say("{} ({})", where, which))
        if parts:
            text.append(say("{}: {}.", bold(layout), join_html(parts)))
    lagging = study.depth[(study.depth["cause"] == "lag") & (study.depth["ratio"] >= SHIFTED)]
    counts = {str(label): len(rows) for label, rows in lagging.groupby("group", sort=False)}
    if counts:
        those = [f"{label} ({pluralize(count, 'layer')})" for label, count in counts.items()]
        text.append(
            say(
                "For the most part lag of BN’s moving average, not shift, are ratios in {}.",
                join_html(those),
            )
        )
    fine = say(
        "Ratios are the last epoch’s, means over seeds. A layer counts from a ratio of {} on that "
        "is three standard errors above 1, is not lag for the most part, and, in a config with "
        "noise, is as large with the noise’s part alone. Elsewhere: the layers before, and the lag "
        "of BN’s average; a factor below 1 works against the others.",
        SHIFTED,
    )
    if layer is None:
        return Card("begin", question, "At none", text, fine)
    place = f"layer {list(study.layers).index(layer) + 1} of {len(study.layers)}"
    answer = f"{escape_control(layer)} ({place}) in {worst.label}"
    return Card("begin", question, answer, text, fine)


def first_shifted(study: Study) -> dict[str, str | None]:
    """Label → the first layer that is shifted, by noise where any config has some, never by lag.

    Its ratio is 1.05 or more and three standard errors above 1. What noise does to a layer is
    `total_ratio`, with the noise against without it; configs without noise have no such layer, and
    are left out if others have some.
    """
    noisy = {group.label for group in study.used if group.noise.layout != NO_NOISE}
    result: dict[str, str | None] = {}
    for label, rows in study.depth.groupby("group", sort=False):
        if noisy and label not in noisy:
            continue
        rows = rows.sort_values("index")
        above = rows[(rows["ratio"] >= SHIFTED) & (rows["ratio"] - 1 > _ERRORS * rows["se"])]
        above = above[above["cause"] != "lag"]
        if noisy:  # a run that does not say it (explain_batches: 0) is taken by its ratio
            total = above["total"].fillna(above["ratio"])
            above = above[np.maximum(total, 1 / total) >= SHIFTED]
        result[str(label)] = str(above["layer"].iloc[0]) if len(above) else None
    return result


def _mean_shift(group: Group) -> float:
    sample = group.sample("shift_ratio_mean")
    return sample.mean if sample else 0.0


def _course(study: Study, group: Group, layer: str) -> Markup:
    row = study.depth[study.depth["group"] == group.label].set_index("layer").loc[layer]
    ratio, local, inherited = (number(row[c]) for c in ("ratio", "local", "inherited"))
    text = say("In {}, the shift begins at {} with a ratio of {}", bold(group.label),
        bold(escape_control(layer)), format_number(ratio, 2))  # fmt: skip
    if group.noise.layout != NO_NOISE and local is not None and inherited is not None:
        text += say(
            ": ×\N{NO-BREAK SPACE}{} from the noise in front of it, "
            "×\N{NO-BREAK SPACE}{} from elsewhere",
            format_number(local, 2),
            format_number(inherited, 2),
        )
    largest, at = group.sample("shift_ratio_max"), group.most_frequent("shift_ratio_max_layer")
    if largest is None or at is None:
        return text + Markup(".")
    # As in the table, and as `vshift compare` has it: runs need not agree on the layer.
    several = len(group.runs) > 1
    return text + say(
        ". Its largest ratio is {}{}, {}at {}.",
        format_number(largest.mean, 2),
        " (the mean over seeds of each run’s largest)" if several else "",
        "most often " if several else "",
        bold(escape_control(at)),
    )


def _prediction(study: Study) -> Card:
    from scipy import special

    question = "Did the prediction hold?"
    checks = _once(study, study.predictions)
    exact = checks[checks["exact"].astype(bool)]
    if exact.empty:
        why = (
            "No layer has noise in front of it that the formula covers exactly; or the runs do not "
            "say (measure.explain_batches: 0, or an earlier version)."
        )
        return Card("prediction", question, "Nothing to predict", [Markup(why)])
    inside = (exact["local"] - exact["predicted"]).abs() <= _ERRORS * exact["se"]
    # How often |t| ≤ 3 with the fewest batches that any run's standard errors come from.
    sections = [group.config.get("measure") for group in study.used]
    numbers = [number(s.get("explain_batches")) for s in sections if isinstance(s, dict)]
    batches = int(min((b for b in numbers if b and b >= 2), default=4))
    expected = 1 - 2 * float(special.stdtr(batches - 1, -_ERRORS))
    count, share = len(exact), float(inside.mean())
    held = share >= expected - 3 * (expected * (1 - expected) / count) ** 0.5
    off = (exact["local"] / exact["predicted"] - 1).abs()
    farthest = exact.iloc[int(off.to_numpy().argmax())]
    without = len(_once(study, study.noisy)) - len(checks)
    more = f" For {pluralize(without, 'more layer')} after noise there is no prediction."
    approximate = len(checks) - count
    text = [
        say(
            "The prediction is how much the noise in front of a layer shifts it, from the noise "
            "variance s² and the trained weights alone. It is checked {}: in each run at each "
            "layer that the noise reaches through at most one convolution or linear layer.{}",
            pluralize(count, "time"),
            more if without > 0 else "",
        ),
        say(
            "In {} of {} the measured ratio lies within three standard errors (s.e.) of it. Of an "
            "exact prediction about {} % would: a measurement has an error, and a standard error "
            "from {} of images is a rough one.",
            bold(f"{int(inside.sum())}"),
            count,
            format_number(100 * expected, 0),
            pluralize(batches, "batch", "batches"),
        ),
        say(
            "Half of them are within {} % of the prediction, the farthest is {} % off ({}, {}).",
            format_number(100 * float(off.median()), 2),
            format_number(100 * float(off.max()), 2),
            farthest["group"],
            escape_control(str(farthest["layer"])),
        ),
    ]
    if approximate:
        checked = pluralize(approximate, "check")
        text.append(say("Not counted: {} where the formula is approximate.", checked))
    answer = f"{'Yes' if held else 'Not everywhere'}: {100 * share:.0f} % within 3 s.e."
    return Card("prediction", question, answer, text)


def _once(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame without the rows of a training that is in it under another name already."""
    first: dict[object, str] = {}
    for group in study.used:
        first.setdefault(training_of(group), group.label)
    return frame[frame["group"].isin(first.values())]


# ---- what recalibration recovers


def _recalibration(study: Study, effects: Sequence[Effect]) -> Card:
    """The card on the score that recalibration recovers, of the most affected config first."""
    question = "What does recalibration recover?"
    found = recovered(study)
    if not found:
        why = (
            "No run has recalibration.json; recalibration.methods: [precise] makes train write it."
        )
        return Card("recalibration", question, "Not measured", [Markup(why)])
    worst = most_affected(study, effects)
    chosen = next((r for r in found if r.group is worst), None)
    chosen = chosen or max(found, key=lambda r: r.found.value)
    group, value = chosen.group, chosen.found.value
    lost = next((e.value for e in effects if e.group is group and e.value > 0), None)
    method, label = bold(chosen.method), bold(group.label)
    change, what = bold(study.format_score(abs(value))), column_name(study.score)
    more = None if lost is None or value <= lost else study.format_score(value - lost)
    if more is not None:
        begin = say("{} recovers all of the {} {} that {} lost, and {} more", method,
            study.format_score(lost), study.unit, label, bold(more))  # fmt: skip
    elif lost is not None and value > 0:
        begin = say("{} recovers {} {} of the {} that {} lost", method, change, study.unit,
            study.format_score(lost), label)  # fmt: skip
    else:
        verb = "lowers" if value > 0 else "raises"
        begin = say("{} {} the {} of {} by {}{}", method, verb, what, label, change, study.points)
    significance = chosen.found.verdict(study.points.strip())
    text = [begin + say(" ({}). That is {}.", interval(study, chosen.found), significance)]
    methods = every_method(study, group)
    if len(methods) > 1:
        of_each = [f"{r.method} {study.format_score(r.found.value, '+')}" for r in methods]
        text.append(say("There by method: {}.", join_html(of_each)))
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
    for word in sorted(others, reverse=True):
        text.append(say("{}, the other configs: {}.", word, join_html(others[word])))
    tried = [m for m in dict.fromkeys(study.recalibration["method"]) if m in METHODS]
    words = "; ".join(f"{method}, {METHODS[method].words}" for method in tried)
    fine = say(
        "Recalibration re-estimates BN’s statistics after training, with noise off; the weights "
        "stay. Each run is its own before and after, so intervals and p are those of the paired t "
        "test over seeds, p corrected for all configs (Holm). By the method that a config lists "
        "first ({}), which need not be the best.{}",
        join_html(dict.fromkeys(r.method for r in found)),
        f" Methods: {words}." if len(tried) > 1 else "",
    )
    of = "" if lost is None else f" of {study.format_score(lost)}"
    doubt = "" if chosen.found.is_significant else ", not significant"
    doubt = doubt if chosen.found.is_tested else ", not tested"
    answer = f"{study.format_score(value)}{of}{study.points} in {group.label}{doubt}"
    if more is not None:
        answer = f"all {study.format_score(lost)}{study.points} and {more} more in "
        answer += f"{group.label}{doubt}"
    return Card("recalibration", question, answer, text, fine)
