"""Whether the prediction of the shift held."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from vshift.compare.fields import value_at
from vshift.report.effects import training_of
from vshift.report.sentences import Card, bold, say
from vshift.report.study import Study
from vshift.runs.read import number
from vshift.text import escape_control, format_number, pluralize

_ERRORS = 3.0  # standard errors that a measurement may be from its prediction


def card(study: Study) -> Card:
    """The card on how often measured local ratios lie where the prediction is."""
    question = "Did the prediction hold?"
    checks = _once(study, study.predictions)
    checks = checks.assign(off=(checks["local"] / checks["predicted"] - 1).abs())
    is_exact = checks["exact"].astype(bool)
    exact, rough = checks[is_exact], checks[~is_exact]
    if exact.empty:
        why = (
            "No layer has noise in front of it that the formula covers exactly; or the runs do not "
            "say (measure.explain_batches: 0, or an earlier version)."
        )
        return Card("prediction", question, "Nothing to predict", [Markup(why)])
    inside = (exact["local"] - exact["predicted"]).abs() <= _ERRORS * exact["se"]
    batches = _fewest_batches(study)
    expected = _expected_share(batches)
    count, right = len(exact), int(inside.sum())
    held = right / count >= expected - 3 * (expected * (1 - expected) / count) ** 0.5
    farthest = exact.iloc[int(exact["off"].to_numpy().argmax())]
    without = len(_once(study, study.noisy)) - len(checks)
    more = f" For {pluralize(without, 'more layer')} after noise there is no prediction."
    text = [
        say(
            "The prediction is how much the noise in front of a layer shifts it, from the noise "
            "variance s², the trained weights and the input without noise. It is checked {}: in "
            "each run at each layer that the noise reaches through at most one convolution or "
            "linear layer.{}",
            pluralize(count, "time"),
            more if without > 0 else "",
        ),
        say(
            "In {} of {} the measured ratio lies within three standard errors of it. Of an "
            "exact prediction about {} % would: a measurement has an error, and a standard error "
            "from {} of images is a rough one.",
            bold(f"{right}"),
            count,
            format_number(100 * expected, 0),
            pluralize(batches, "batch", "batches"),
        ),
        say(
            "Half of them are within {} % of the prediction, the farthest is {} % off ({}, {}).",
            format_number(100 * float(exact["off"].median()), 2),
            format_number(100 * float(farthest["off"]), 2),
            farthest["group"],
            escape_control(str(farthest["layer"])),
        ),
    ]
    if len(rough):
        text.append(
            say(
                "Not counted: {} where the formula is approximate, up to {} % off.",
                pluralize(len(rough), "check"),
                format_number(100 * float(rough["off"].max()), 2),
            )
        )
    answer = f"{'Yes' if held else 'Not everywhere'}: {right} of {pluralize(count, 'check')} agree"
    return Card("prediction", question, answer, text)


def _fewest_batches(study: Study) -> int:
    """The fewest batches that any run's standard errors come from."""
    numbers = [number(value_at(g.config, "measure.explain_batches")) for g in study.used]
    return int(min((b for b in numbers if b and b >= 2), default=4))


def _expected_share(batches: int) -> float:
    """How often |t| ≤ 3 where the standard error comes from this many batches."""
    from scipy import special

    return 1 - 2 * float(special.stdtr(batches - 1, -_ERRORS))


def _once(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame without the rows of a training that is in it under another name already."""
    first: dict[object, str] = {}
    for group in study.used:
        first.setdefault(training_of(group), group.label)
    return frame[frame["group"].isin(first.values())]
