"""At which layer the shift begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from vshift.compare.groups import Group
from vshift.report.effects import Effect, most_affected
from vshift.report.layouts import grouped
from vshift.report.sentences import Card, bold, join_html, say
from vshift.report.study import Study
from vshift.runs.read import number
from vshift.text import escape_control, format_number, pluralize

# From this ratio on a layer counts as shifted. A network without noise has about 1.02, as its
# weights move while BN takes its average.
SHIFTED = 1.05
_ERRORS = 3.0  # standard errors that a difference from 1 must exceed


def card(study: Study, effects: Sequence[Effect]) -> Card:
    """The card on the first shifted layer of the most affected config, and of each layout."""
    question = "At which layer does the noise’s shift begin?"
    noisy = [group for group in study.used if group.has_noise]
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
    text = [_course(study, worst, layer)] if layer is not None else []
    text += [*_by_layout(noisy or study.used, first), *_lagging(study)]
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


def _by_layout(groups: Sequence[Group], first: Mapping[str, str | None]) -> list[Markup]:
    """Where the shift begins in the configs of each layout.

    Args:
        first: label → the first shifted layer, of `first_shifted`.
    """
    text = []
    for layout in dict.fromkeys(group.noise.layout for group in groups):
        same = [g for g in groups if g.noise.layout == layout and g.label in first]
        strengths = [g.noise.strength_in_words for g in same]
        is_told = len(set(strengths)) == len(same) and all(strengths)
        names = strengths if is_told else [g.label for g in same]
        layers = grouped((first[g.label], name) for g, name in zip(same, names, strict=True))
        parts = []
        for found, those in layers.items():
            where = "at no layer" if found is None else f"first at {escape_control(found)}"
            which = join_html(those)
            parts.append(where if len(layers) == 1 else say("{} ({})", where, which))
        if parts:
            text.append(say("{}: {}.", bold(layout), join_html(parts)))
    return text


def _lagging(study: Study) -> list[Markup]:
    """The configs with ratios that are lag for the most part."""
    lagging = study.depth[(study.depth["cause"] == "lag") & (study.depth["ratio"] >= SHIFTED)]
    counts = {str(label): len(rows) for label, rows in lagging.groupby("group", sort=False)}
    those = [f"{label} ({pluralize(count, 'layer')})" for label, count in counts.items()]
    text = "For the most part lag of BN’s moving average, not shift, are ratios in {}."
    return [say(text, join_html(those))] if those else []


def first_shifted(study: Study) -> dict[str, str | None]:
    """Label → the first layer that is shifted, by noise where any config has some, never by lag.

    Its ratio is 1.05 or more and three standard errors above 1. What noise does to a layer is
    `total_ratio`, with the noise against without it; configs without noise have no such layer, and
    are left out if others have some.
    """
    noisy = {group.label for group in study.used if group.has_noise}
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
    """Where the shift of a config begins, what it is made of, and where it is largest."""
    row = study.depth[study.depth["group"] == group.label].set_index("layer").loc[layer]
    ratio, local = number(row["ratio"]), number(row["local"])
    text = say("In {}, the shift begins at {} with a ratio of {}", bold(group.label),
        bold(escape_control(layer)), format_number(ratio, 2))  # fmt: skip
    if group.has_noise and ratio is not None and local:
        text += say(
            ": ×\N{NO-BREAK SPACE}{} from the noise in front of it, "
            "×\N{NO-BREAK SPACE}{} from elsewhere",
            format_number(local, 2),
            format_number(ratio / local, 2),
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
