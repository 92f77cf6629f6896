"""Where the shift begins, and whether the prediction of it held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from vshift.compare.groups import NO_NOISE
from vshift.report.data import Study
from vshift.report.effects import Effect, most_affected
from vshift.report.groups import Group
from vshift.report.prose import Card, bold, joined, listed, say
from vshift.runs.read import number
from vshift.text import escape_control, format_number, pluralize

# From this ratio on a layer counts as shifted. A network without noise has 1.02 or so, as its
# weights move while BN takes its average.
SHIFTED = 1.05
_ERRORS = 3.0


def beginnings(study: Study) -> dict[str, str | None]:
    """Group → the first layer whose ratio is 1.05 or more and three standard errors above 1."""
    result: dict[str, str | None] = {}
    for label, rows in study.depth.groupby("group", sort=False):
        rows = rows.sort_values("index")
        above = rows[(rows["ratio"] >= SHIFTED) & (rows["ratio"] - 1 > _ERRORS * rows["se"])]
        result[str(label)] = str(above["layer"].iloc[0]) if len(above) else None
    return result


def beginning(study: Study, effects: Sequence[Effect]) -> Card:
    question = "At which layer does the shift begin?"
    first = beginnings(study)
    if not first:
        why = "No run has a measured shift (measure.every: 0 turns it off, or there is no BN)."
        return Card("begin", question, "Not measured", [Markup(why)])
    worst = most_affected(study, effects)
    names = list(study.layers)
    where = first.get(worst.label)
    text = []
    if where is not None:
        text.append(_course(study, worst, where))
    for layout in dict.fromkeys(g.noise.layout for g in study.used):
        text.append(_of_layout(study, layout, first))
    fine = say(
        "Ratios are the last epoch’s, means over seeds. A layer counts as shifted from a ratio of "
        "{} on, if that is three standard errors above 1; behind the first one a ratio may fall "
        "below it again. Elsewhere: the layers before, and the lag of BN’s average; a factor below "
        "1 works against the others.",
        SHIFTED,
    )
    if where is None:
        return Card("begin", question, "At none", text, fine)
    place = names.index(where) + 1
    answer = f"{escape_control(where)} (layer {place} of {len(names)}) in {worst.label}"
    return Card("begin", question, answer, text, fine)


def _course(study: Study, group: Group, where: str) -> Markup:
    rows = study.depth[study.depth["group"] == group.label].set_index("layer")
    ratio, local, inherited = (number(rows[c][where]) for c in ("ratio", "local", "inherited"))
    text = say("In {}, the shift begins at {} with a ratio of {}", bold(group.label),
        bold(where), format_number(ratio, 2))  # fmt: skip
    if group.noise.layout != NO_NOISE and local is not None and inherited is not None:
        text += say(
            ": ×\N{NO-BREAK SPACE}{} from the noise in front of it, "
            "×\N{NO-BREAK SPACE}{} from elsewhere",
            format_number(local, 2),
            format_number(inherited, 2),
        )
    largest, at = group.row["shift_ratio_max"], group.row["shift_ratio_max_layer"]
    if largest is None or at is None:
        return text + Markup(".")
    # As in the table, and as `vshift compare` has it: runs need not agree on the layer.
    mean = " (the mean over seeds of each run’s largest)" if len(group.runs) > 1 else ""
    often = "most often " if len(group.runs) > 1 else ""
    return text + say(
        ". Its largest ratio is {}{}, {}at {}.",
        format_number(largest, 2),
        mean,
        often,
        bold(escape_control(at)),
    )


def _of_layout(study: Study, layout: str, first: dict[str, str | None]) -> Markup:
    groups = [g for g in study.used if g.noise.layout == layout and g.label in first]
    places = Counter(first[g.label] for g in groups)
    parts = []
    for place, count in places.items():
        which = listed(
            g.noise.strength_in_words or g.label for g in groups if first[g.label] == place
        )
        where = "at no layer" if place is None else say("first at {}", escape_control(place))
        parts.append(where if count == len(groups) else say("{} ({})", where, which))
    return say("{}: {}.", bold(layout), joined(map(Markup.escape, parts)))


def prediction(study: Study) -> Card:
    question = "Did the prediction hold?"
    checks, behind = _once(study, study.predictions), _once(study, study.behind)
    exact = checks[checks["exact"].astype(bool)]
    if exact.empty:
        why = (
            "No layer has noise in front of it that the formula covers exactly; or the runs do not "
            "say (measure.explain_batches: 0, or an earlier version)."
        )
        return Card("prediction", question, "Nothing to predict", [Markup(why)])
    apart = (exact["local"] - exact["predicted"]).abs()
    inside = apart <= _ERRORS * exact["se"]
    expected, batches = _expected_share(study)
    count, share = len(exact), float(inside.mean())
    held = share >= expected - 3 * (expected * (1 - expected) / count) ** 0.5
    off = (exact["local"] / exact["predicted"] - 1).abs()
    farthest = int(off.to_numpy().argmax())
    text = [
        say(
            "The prediction is how much the noise in front of a layer shifts it, from the noise "
            "variance s² and the trained weights alone. It is checked {}: in each run at each "
            "layer that the noise reaches through at most one convolution or layer of weights.{}",
            pluralize(count, "time"),
            _unchecked(len(behind) - len(checks)),
        ),
        say(
            "In {} of {} the measured ratio lies within three standard errors (s.e.) of it. Of an "
            "exact prediction about {} % would: measuring errs, and a standard error from {} of "
            "images is a rough one.",
            bold(f"{int(inside.sum())}"),
            count,
            format_number(100 * expected, 0),
            pluralize(batches, "batch", "batches"),
        ),
        say(
            "Half of them are within {} % of the prediction, the farthest is {} % off ({}, {}).",
            format_number(100 * float(off.median()), 2),
            format_number(100 * float(off.max()), 2),
            exact["group"].iloc[farthest],
            escape_control(str(exact["layer"].iloc[farthest])),
        ),
    ]
    rest = len(checks) - count
    if rest:
        text.append(
            say("Not counted: {} where the formula is approximate.", pluralize(rest, "check"))
        )
    return Card(
        "prediction",
        question,
        f"{'Yes' if held else 'Not everywhere'}: {format_number(100 * share, 0)} % within 3 s.e.",
        text,
    )


def _unchecked(count: int) -> str:
    if count <= 0:
        return ""
    return f" For {pluralize(count, 'more layer')} behind noise there is no prediction."


def _once(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame without the rows of a training that stands there under another name already."""
    first: dict[object, str] = {}
    for group in study.used:
        first.setdefault(group.observed or group.label, group.label)
    return frame[frame["group"].isin(first.values())]


def _expected_share(study: Study) -> tuple[float, int]:
    """How often |t| ≤ 3 with the fewest batches that any run's standard errors come from."""
    from scipy import special

    sections = [group.config.get("measure") for group in study.used]
    found = [number(s.get("explain_batches")) for s in sections if isinstance(s, dict)]
    batches = int(min((b for b in found if b and b >= 2), default=4))
    return 1 - 2 * float(special.stdtr(batches - 1, -_ERRORS)), batches
