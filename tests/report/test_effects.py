"""Differences between configs, and which configs are compared at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from tests.factory import config_of, dropout, make_run
from tests.report.study import EVIL
from vshift.report.answers import cards
from vshift.report.effects import against_baseline, between_layouts, unpaired
from vshift.report.study import Study, collect
from vshift.runs import find_runs

BASE, LAST_BN = [10.0, 10.6, 9.5], [40.0, 40.6, 39.5]


def test_differences_are_welchs(study: Study) -> None:
    effects = {e.group.label: e for e in against_baseline(study)}
    effect = effects["arm-bn-0.5"]
    assert effect.value == pytest.approx(30.0)
    expected = stats.ttest_ind(LAST_BN, BASE, equal_var=False)
    interval = expected.confidence_interval()
    assert effect.found.low == pytest.approx(interval.low)
    assert effect.found.high == pytest.approx(interval.high)
    assert effect.found.p_value == pytest.approx(expected.pvalue)
    assert effect.found.tests == 3  # the evil arm has one seed
    assert not effects[EVIL].found.is_tested


def test_layouts_are_compared_at_the_same_variance_only(study: Study) -> None:
    pairs = between_layouts(study)
    assert [(e.group.label, e.other.label) for e in pairs] == [("arm-bn-0.5", "arm-conv-0.5")]
    assert pairs[0].found.is_significant


def test_no_number_of_seeds_that_are_there_already(tmp_path: Path) -> None:
    for name, noise, errors in (
        ("none", None, (10.0, 12.0, 11.0)),
        ("a", dropout(0.3), (14.0, 17.5)),
        ("b", dropout(0.5), (11.5, 13.0, 12.5)),
    ):
        for seed, error in enumerate(errors):
            make_run(tmp_path, name, seed, 100 - error, config=config_of(name, noise))
    study = collect(find_runs([tmp_path]))
    assert "None of these differences is significant (next answer)." in cards(study)[0].text
    for effect in against_baseline(study):
        assert not effect.found.is_significant
        needed = effect.found.seeds_needed
        assert needed is not None
        assert needed > 3


def layouts_with(folder: Path, **other: Any) -> Study:
    """Two layouts of one strength, the second one with other settings besides."""
    for position, errors in (("bn", (20.0, 20.5)), ("conv", (12.0, 12.6))):
        config = config_of(noise={**dropout(0.5), "position": f"before_last_{position}"})
        config |= other if position == "conv" else {}
        for seed, error in enumerate(errors):
            make_run(folder, position, seed, 100 - error, config=config)
    return collect(find_runs([folder]))


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"checkpoint": {"minutes": 3}},
        {"measure": {"every": 2, "eval_batches": 5}},
        {"recalibration": {"methods": ["precise"]}},
        {"hardware": {"threads": 1, "step": "eager", "device": "cpu"}},
    ],
)
def test_settings_that_change_no_training_keep_layouts_a_pair(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    study = layouts_with(tmp_path, **other)
    assert [(e.group.label, e.other.label) for e in between_layouts(study)] == [("bn", "conv")]
    assert unpaired(study) == []


@pytest.mark.parametrize(
    ("other", "key"), [({"epochs": 9}, "epochs"), ({"norm": {"kind": "group"}}, "norm.kind")]
)
def test_a_pair_that_is_left_out_is_named(tmp_path: Path, other: dict[str, Any], key: str) -> None:
    study = layouts_with(tmp_path, **other)
    assert between_layouts(study) == []
    notes = unpaired(study)
    assert len(notes) == 2
    assert notes[0].startswith("bn is compared with no other layout of its strength: conv differs")
    assert key in notes[0]
