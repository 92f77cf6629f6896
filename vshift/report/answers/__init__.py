"""The answers in words, at the top of the page: one card per question, one file per card."""

from __future__ import annotations

from vshift.report.answers import loss, prediction, recalibration, shift, significance
from vshift.report.effects import against_baseline, between_layouts
from vshift.report.sentences import Card
from vshift.report.study import Study


def cards(study: Study) -> list[Card]:
    """The page's answers, in reading order."""
    effects, pairs = against_baseline(study), between_layouts(study)
    return [
        loss.card(study, effects, pairs),
        significance.card(study, effects, pairs),
        shift.card(study, effects),
        prediction.card(study),
        recalibration.card(study, effects),
    ]
