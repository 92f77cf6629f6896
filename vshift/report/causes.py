"""Where the shift begins, and whether the prediction of it held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from vshift.compare.text import fixed
from vshift.report.data import Study
from vshift.report.effects import Effect, most_affected
from vshift.report.groups import Group
from vshift.report.prose import Card, bold, joined, listed, say
from vshift.runs.reading import number

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
        "A layer counts as shifted from a ratio of {} on, three standard errors above 1.", SHIFTED
    )
    if where is None:
        return Card("begin", question, "At none", text, fine)
    answer = f"{study.layers[where]}, layer {names.index(where) + 1} of {len(names)}"
    return Card("begin", question, answer, text, fine)


def _course(study: Study, group: Group, where: str) -> Markup:
    rows = study.depth[study.depth["group"] == group.label].set_index("layer")
    highest = str(rows["ratio"].idxmax())
    return say(
        "In {}, the shift begins at {} (ratio {}: {} from the noise in front of it, {} inherited) "
        "and is largest at {} ({}).",
        bold(group.label),
        bold(where),
        *(fixed(number(rows[c][where]), 2) for c in ("ratio", "local", "inherited")),
        bold(highest),
        fixed(float(rows["ratio"][highest]), 2),
    )


def _of_layout(study: Study, layout: str, first: dict[str, str | None]) -> Markup:
    groups = [g for g in study.used if g.noise.layout == layout and g.label in first]
    places = Counter(first[g.label] for g in groups)
    parts = []
    for place, count in places.items():
        which = listed(g.noise.strength or g.label for g in groups if first[g.label] == place)
        where = "at no layer" if place is None else say("from {} on", study.layers[place])
        parts.append(where if count == len(groups) else say("{} ({})", where, which))
    return say("{}: {}.", bold(layout), joined(map(Markup.escape, parts)))


def prediction(study: Study) -> Card:
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
    farthest = int(off.to_numpy().argmax())
    text = [
        say(
            "In {} of {} layers of all runs that noise reaches, the measured local ratio lies "
            "within three standard errors of what s² and the weights predict; chance alone would "
            "leave {} % there (errors from {} batches).",
            bold(f"{int(inside.sum())}"),
            count,
            fixed(100 * expected, 0),
            batches,
        ),
        say(
            "Half of them are within {} % of the prediction, the farthest is {} % off ({}, {}).",
            fixed(100 * float(off.median()), 2),
            fixed(100 * float(off.max()), 2),
            exact["group"].iloc[farthest],
            study.layers[exact["layer"].iloc[farthest]],
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
    from scipy import special

    sections = [group.config.get("measure") for group in study.used]
    found = [number(s.get("explain_batches")) for s in sections if isinstance(s, dict)]
    batches = int(min((b for b in found if b and b >= 2), default=4))
    return 1 - 2 * float(special.stdtr(batches - 1, -_ERRORS)), batches
