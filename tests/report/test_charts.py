"""What the charts' specifications say."""

from __future__ import annotations

import json

from vshift.report.figures import FIGURES, frames, specs
from vshift.report.study import Study


def test_a_figure_reads_only_columns_that_its_data_has(study: Study) -> None:
    data = frames(study)
    computed = {"value", "low", "high", "key", "kind", "variance", "x", "y"}
    drawn = specs(study)
    for figure in FIGURES:
        text = json.dumps(drawn[figure.id])
        fields = {part.split('"')[0] for part in text.split('"field": "')[1:]}
        assert fields <= {*map(str, data[figure.data].columns), *computed}, figure.id


def test_figures_of_configs_share_their_colours(study: Study) -> None:
    drawn = specs(study)
    scales = set()
    for figure in FIGURES:
        if figure.grouped:
            text = json.dumps(drawn[figure.id])
            part = text[text.index('"color"') :]
            start = part.index('"range": [')
            scales.add(part[start : part.index("]", start)])
    assert len(scales) == 1
