"""The answers in words: one card per question, at the top of the page.

Names and numbers may have been written by anybody, so sentences are put together by markupsafe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from vshift.compare.fields import active_noise
from vshift.compare.groups import NO_NOISE, Group, Noise
from vshift.compare.statistics import Difference
from vshift.config.recalibration import METHODS
from vshift.report.effects import (
    Effect,
    Recovered,
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


def points(study: Study) -> str:
    return " points" if study.score == "test_error" else ""


def unit(study: Study) -> str:
    return "points of test error" if study.score == "test_error" else "of test loss"


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


def p_both(found: Difference) -> str:
    """`p = 0.089, alone 0.022`: corrected for the whole page, and not."""
    if found.p_value is None or found.tests < 2 or found.p == found.p_value:
        return format_p(found.p)
    alone = format_p(found.p_value).removeprefix("p = ").removeprefix("p ")
    return f"{format_p(found.p)}, alone {alone}"


def seeds_hint(found: Difference) -> str:
    """`; about 9 seeds per config would tell`, of what is not significant."""
    needed = None if found.is_significant else found.seeds_needed
    return "" if needed is None else f"; about {needed:,} seeds per config would tell"


# ---- which layout loses accuracy

_BASELINE_OPTION = Markup("<code>--baseline</code>")
_STAR = Markup("* significant at 5 %, corrected for all pairs of layouts (Holm).")


def _loss(study: Study, effects: Sequence[Effect], pairs: Sequence[Effect]) -> Card:
    question = "Which layout loses accuracy, and how much?"
    duels = _duels(study, pairs)
    if not study.used:
        return Card("loss", question, "No run is done yet", [])
    if not effects:
        return Card("loss", question, "No baseline", [_without_baseline(study), *duels])
    worst = worst_of(effects)
    group, base = worst.group, worst.other
    if worst.value <= 0:
        what = study.score.replace("_", " ")
        text = say("No config has a higher {} than {}.", what, bold(base.label))
        return Card("loss", question, "None", [text, *duels])
    strength = group.noise.strength_in_words
    text = say(
        "{}{} loses most: {} {} more than {} ({} against {}; {}).",
        bold(group.label),
        f" ({strength})" if strength else "",
        bold(study.format_score(worst.value)),
        unit(study),
        base.label,
        _mean(study, group),
        _mean(study, base),
        interval(study, worst.found),
    )
    sentences = [text, *_by_layout(study, effects), *_which_significant(effects), *duels]
    star = _STAR if any(e.found.is_significant for e in pairs) else None
    return Card("loss", question, _headline(study, effects, worst), sentences, star)


def _headline(study: Study, effects: Sequence[Effect], worst: Effect) -> str:
    """What the layout costs, with the rate at which it costs that, or the range over all rates."""
    noise = worst.group.noise
    if noise.layout == NO_NOISE:
        return f"{worst.group.label}: {study.format_score(worst.value, '+')}{points(study)}"
    family = [e for e in effects if e.group.noise.layout == noise.layout]
    strengths = {e.group.noise.strength for e in family}
    losses = _range(study, [e.value for e in family])
    if len(strengths) == 1 and " to " not in losses:
        at = f" at {noise.strength_in_words}" if noise.strength else ""
        return f"{noise.layout}{at}: {losses}{points(study)}"
    if len(strengths) < len(family):
        over = f"{len(family)} configs"
    else:
        over = _strengths_in_words([e.group.noise for e in family])
    return f"{noise.layout}: {losses}{points(study)} over {over}"


def _strengths_in_words(noises: Sequence[Noise]) -> str:
    """`rates 0.1 to 0.7`, `β 0.1 to β 0.5`, from weak to strong."""
    ends = sorted(noises, key=lambda noise: (noise.variance or 0.0, natural(noise.strength)))
    low, high = ends[0].strength, ends[-1].strength
    return f"{'rates ' if low[:1].isdigit() else ''}{low} to {high}"


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


def _by_layout(study: Study, effects: Sequence[Effect]) -> list[Markup]:
    """The range of losses of each layout, where there are several."""
    losses = grouped((e.group.noise.layout, e.value) for e in effects)
    parts = [say("{} {}", bold(name), _range(study, values)) for name, values in losses.items()]
    return [] if len(parts) < 2 else [say("By layout, {}: {}.", unit(study), join_html(parts))]


def _which_significant(effects: Sequence[Effect]) -> list[Markup]:
    """Which of the losses are significant, where some are not."""
    tested = [e for e in effects if e.found.is_tested]
    significant = [bold(e.group.label) for e in tested if e.found.is_significant]
    if len(significant) == len(tested):
        return []
    if not significant:
        return [Markup("None of these differences is significant (next answer).")]
    return [say("Significant: only {} (next answer).", join_html(significant))]


def _duels(study: Study, pairs: Sequence[Effect]) -> list[Markup]:
    """Layouts against each other at the same noise variance."""
    texts = grouped(
        (
            (e.group.noise.layout, e.other.noise.layout),
            f"{study.format_score(e.value, '+')} at {e.group.noise.strength_in_words}"
            f"{'*' * e.found.is_significant}",
        )
        for e in pairs
    )
    sentence = "At the same strength, {} costs more than {}: {}."
    return [say(sentence, bold(a), bold(b), join_html(own)) for (a, b), own in texts.items()]


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
    text = _by_significance(study, compared, effects[0].other if effects else None)
    answer = f"{distinct(significant)} of {distinct(tested)} are"
    return Card("significance", question, answer, text, _how_tested(tested))


def _by_significance(study: Study, compared: Sequence[Effect], base: Group | None) -> list[Markup]:
    """The significant differences, the others, those not tested, and which are the same."""
    against = f" against {base.label}" if base else ""
    parts = grouped(
        (
            verdict(e.found),
            say(
                "{}{} {} ({}{}{})",
                bold(e.group.label),
                "" if base else f" against {e.other.label}",
                study.format_score(e.value, "+"),
                f"{interval(study, e.found)}, " if e.found.is_significant else "",
                p_both(e.found),
                seeds_hint(e.found),
            ),
        )
        for e in compared
        if e.found.is_tested
    )
    text = [
        say("{}{}: {}.", word, against if word == "Significant" else "", join_html(parts[word]))
        for word in sorted(parts, reverse=True)
    ]
    untested = grouped((e.found.untested, e.group.label) for e in compared if e.found.untested)
    same = same_trainings([e.group for e in compared if e.found.is_tested])
    return [
        *text,
        *(say("Not tested ({}): {}.", why, join_html(some)) for why, some in untested.items()),
        *(say("{} are the same trainings and count once.", join_html(some)) for some in same),
    ]


def _how_tested(tested: Sequence[Effect]) -> Markup:
    text = "Last epoch’s scores over seeds. Intervals and p are Welch’s. "
    count = max(effect.found.tests for effect in tested)
    if count > 1:
        text += (
            f"p is corrected for the {count} comparisons of this page (Holm), so that a page with "
            "fewer can have a smaller p for the same runs; “alone” is p without that, and so are "
            "intervals. "
        )
    return Markup(text + "Significant: p below 0.05.")


# ---- where the shift begins, and whether the prediction of it held


def _beginning(study: Study, effects: Sequence[Effect]) -> Card:
    question = "At which layer does the shift begin?"
    first = first_shifted(study)
    if not first:
        why = "No run has a measured shift (measure.every: 0 turns it off, or there is no BN)."
        return Card("begin", question, "Not measured", [Markup(why)])
    worst = most_affected(study, effects)
    layer = first.get(worst.label)
    layouts = dict.fromkeys(group.noise.layout for group in study.used)
    text = [_course(study, worst, layer)] if layer is not None else []
    text += [_first_of_layout(study, layout, first) for layout in layouts]
    fine = say(
        "Ratios are the last epoch’s, means over seeds. A layer counts as shifted from a ratio of "
        "{} on if that is three standard errors above 1; after the first one, ratios may be "
        "smaller again. Elsewhere: the layers before, and the lag of BN’s average; a factor below "
        "1 works against the others.",
        SHIFTED,
    )
    if layer is None:
        return Card("begin", question, "At none", text, fine)
    place = f"layer {list(study.layers).index(layer) + 1} of {len(study.layers)}"
    answer = f"{escape_control(layer)} ({place}) in {worst.label}"
    return Card("begin", question, answer, text, fine)


def first_shifted(study: Study) -> dict[str, str | None]:
    """Label → the first layer whose ratio is 1.05 or more and three standard errors above 1."""
    result: dict[str, str | None] = {}
    for label, rows in study.depth.groupby("group", sort=False):
        rows = rows.sort_values("index")
        above = rows[(rows["ratio"] >= SHIFTED) & (rows["ratio"] - 1 > _ERRORS * rows["se"])]
        result[str(label)] = str(above["layer"].iloc[0]) if len(above) else None
    return result


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


def _first_of_layout(study: Study, layout: str, first: dict[str, str | None]) -> Markup:
    groups = [g for g in study.used if g.noise.layout == layout and g.label in first]
    layers = grouped((first[g.label], g.noise.strength_in_words or g.label) for g in groups)
    parts = []
    for layer, names in layers.items():
        where = "at no layer" if layer is None else f"first at {escape_control(layer)}"
        which = join_html(dict.fromkeys(names))
        parts.append(where if len(layers) == 1 else say("{} ({})", where, which))
    return say("{}: {}.", bold(layout), join_html(parts))


def _prediction(study: Study) -> Card:
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
    expected, batches = _expected_share(study)
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


def _expected_share(study: Study) -> tuple[float, int]:
    """How often |t| ≤ 3 with the fewest batches that any run's standard errors come from."""
    from scipy import special

    sections = [group.config.get("measure") for group in study.used]
    found = [number(s.get("explain_batches")) for s in sections if isinstance(s, dict)]
    batches = int(min((b for b in found if b and b >= 2), default=4))
    return 1 - 2 * float(special.stdtr(batches - 1, -_ERRORS)), batches


# ---- what recalibration recovers


def _recalibration(study: Study, effects: Sequence[Effect]) -> Card:
    """What is recovered of what the most affected config lost, and of the others."""
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
    text = [_of_chosen(study, chosen, lost)]
    methods = every_method(study, group)
    if len(methods) > 1:
        of_each = [f"{r.method} {study.format_score(r.found.value, '+')}" for r in methods]
        text.append(say("There by method: {}.", join_html(of_each)))
    others = grouped(
        (verdict(r.found), f"{r.group.label} {study.format_score(r.found.value, '+')}")
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
    is_doubtful = chosen.found.is_tested and not chosen.found.is_significant
    doubt = ", not significant" if is_doubtful else ""
    answer = f"{study.format_score(value)}{of}{points(study)} in {group.label}{doubt}"
    return Card("recalibration", question, answer, text, fine)


def _of_chosen(study: Study, chosen: Recovered, lost: float | None) -> Markup:
    value, label = chosen.found.value, bold(chosen.group.label)
    change = bold(study.format_score(abs(value)))
    if lost is not None and value > 0:
        text = say("{} recovers {} {} of the {} that {} lost", bold(chosen.method), change,
            unit(study), study.format_score(lost), label)  # fmt: skip
    else:
        verb = "lowers" if value > 0 else "raises"
        what = study.score.replace("_", " ")
        text = say("{} {} the {} of {} by {}{}", bold(chosen.method), verb, what, label, change,
            points(study))  # fmt: skip
    interval_text = interval(study, chosen.found)
    return text + say(
        " ({}). That is {}.", interval_text, chosen.found.verdict(points(study).strip())
    )


# ---- what the numbers rest on

_DATA = {
    "shapes": "shapes (drawn by vshift)",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
_STATUS = {
    "running": "not finished (running, or killed)",
    "interrupted": "interrupted",
    "failed": "failed",
    "diverged": "diverged (the loss became NaN or infinite)",
    "damaged": "damaged",
    "done": "done, but not counted",
}


def data_names(study: Study) -> list[str]:
    """The data sets of all configs, as they may be called in a paper."""
    found = (_data_name(section) for section in _data_sections(study))
    return list(dict.fromkeys(name for name in found if name))


def _data_sections(study: Study) -> list[dict[str, object]]:
    sections = (group.config.get("data") for group in study.groups)
    return [section for section in sections if isinstance(section, dict)]


def _data_name(section: dict[str, object]) -> str:
    """A data set by its own name; images from a folder by the folder's, and as such."""
    name = section.get("name")
    if name == "imagefolder":
        folder = escape_control(PurePath(str(section.get("root", ""))).name)
        return f"images in the folder “{folder}”, no published data set"
    return _DATA.get(name, escape_control(name)) if isinstance(name, str) else ""


def data_sentences(study: Study) -> list[Markup]:
    """How much of which data, and what its numbers must not be compared with."""
    sections = _data_sections(study)
    kinds = {str(section.get("name")) for section in sections}
    limits = sorted({tuple(_limits(section)) for section in sections})
    names = data_names(study)
    text = [say("Data: {}.", join_html(map(bold, names)))] if names else []
    text += [say("Limited to {}.", join_html(limit)) for limit in limits if limit]
    if "imagefolder" in kinds:
        text.append(
            Markup(
                "Re-compressed or resized images give other errors than their originals: do not "
                "compare these numbers with published ones for CIFAR-10 or any other set."
            )
        )
    if kinds & {"cifar10", "cifar100"} and any(limits):
        text.append(Markup("A part of a data set: not comparable with published numbers."))
    if len(names) > 1:
        text.append(Markup("Configs on different data are not compared with each other."))
    return text


def _limits(section: dict[str, object]) -> list[str]:
    """`4,000 training images`, of each part that is limited."""
    suffix = "" if section.get("name") == "shapes" else "_limit"
    counts = {"training": section.get(f"train{suffix}"), "test": section.get(f"test{suffix}")}
    return [f"{n:,} {part} images" for part, n in counts.items() if isinstance(n, int)]


def left_out(study: Study) -> list[Markup]:
    """The runs that no number here rests on, counted and named, by status."""
    by_status = grouped(
        (run.status, f"{group.label} seed {run.seed}")
        for group in study.groups
        for run in group.others
    )
    return [
        say("{} {}: {}.", len(names), _STATUS.get(status, status), join_html(names, len(names)))
        for status, names in by_status.items()
    ]


def facts(study: Study) -> str:
    """`12 runs of 4 configs, 2 more not counted`."""
    used = sum(len(group.runs) for group in study.groups)
    others = sum(len(group.others) for group in study.groups)
    text = f"{pluralize(used, 'run')} of {pluralize(len(study.groups), 'config')}"
    return text + (f", {others} more not counted" if others else "")
