"""One training under several names counts once, and runs of one config are joined whatever their
hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from vshift.compare import Comparison, compare
from vshift.compare.groups import OWN_NOISE
from vshift.compare.statistics import SAME_TRAINING, Sample, welch
from vshift.runs import find_runs

BASE, LOSSY = (10.0, 10.6, 9.5), (11.0, 12.2, 12.0)


def arm(runs: Path, name: str, errors: tuple[float, ...], noise: Any, **fields: Any) -> None:
    for seed, error in enumerate(errors):
        make_run(runs, name, seed, 100 - error, config=config_of(noise=noise) | fields)


def rows_of(runs: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], Comparison]:
    comparison = compare(find_runs([runs]), **options)
    return {row["label"]: row for row in comparison.rows}, comparison


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A baseline, an arm, and the arm once more: re-estimated in another way after training."""
    arm(tmp_path, "none", BASE, None)
    arm(tmp_path, "noisy", LOSSY, dropout(0.5))
    arm(tmp_path, "noisy-again", LOSSY, dropout(0.5), recalibration={"moments": "variance"})
    return tmp_path


def test_the_same_training_is_one_test_and_a_note(twice: Path) -> None:
    rows, comparison = rows_of(twice)
    noisy, again = rows["noisy"], rows["noisy-again"]
    assert noisy["p_adjusted"] == noisy["p_value"] == again["p_adjusted"]
    assert "Holm over 1 difference)." in comparison.about_difference
    assert (
        "noisy and noisy-again are the same training with the same seeds under 2 names; they "
        "count once"
    ) in comparison.notes
    arm(twice, "other", (14.0, 14.5, 14.2), dropout(0.7))
    assert "Holm over 2 differences)." in rows_of(twice)[1].about_difference


def test_what_is_measured_after_training_is_tested_for_itself(twice: Path) -> None:
    _, comparison = rows_of(twice, difference="test_error_recalibrated")
    assert "Holm over 2 differences)." in comparison.about_difference
    assert not [note for note in comparison.notes if "count once" in note]


def test_other_seeds_of_the_same_training_are_other_observations(twice: Path) -> None:
    for seed in (7, 8):
        make_run(twice, "noisy-more", seed, 88.0 + seed / 10, config=config_of(noise=dropout(0.5)))
    assert "Holm over 2 differences)." in rows_of(twice)[1].about_difference


def test_no_noise_under_several_names_is_the_baseline(tmp_path: Path) -> None:
    """Rate 0 trains like no noise, wherever it sits; the name with the most seeds is taken."""
    arm(tmp_path, "a-rate-0", BASE[:2], dropout(0.0))
    arm(tmp_path, "b-rate-0", BASE, {**dropout(0.0), "position": "before_last_conv"})
    arm(tmp_path, "noisy", LOSSY, dropout(0.5))
    rows, comparison = rows_of(tmp_path)
    assert comparison.baseline == "b-rate-0"
    assert "Holm over 1 difference)." in comparison.about_difference
    assert rows["a-rate-0"]["verdict"] == f"not tested ({SAME_TRAINING})"
    assert rows["a-rate-0"]["p_value"] is None
    expected = welch(Sample(3, 11.733333, 0.642910), Sample(3, 10.033333, 0.550757))
    assert rows["noisy"]["p_adjusted"] == pytest.approx(expected.p_value, rel=1e-4)


def test_a_network_with_noise_of_its_own_is_no_baseline(tmp_path: Path) -> None:
    own = config_of() | {"network": {"name": "n.py:Net", "args": {"p": 0.5}}}
    make_run(tmp_path, "own", config=own, summary=summary_of(noise_modules=1))
    make_run(tmp_path, "noisy", config=config_of(noise=dropout(0.5)))
    rows, comparison = rows_of(tmp_path)
    assert comparison.baseline is None
    assert {row["label"]: group.noise.layout for row, group in zip(
        rows.values(), comparison.groups, strict=True)
    } == {"noisy": "before_last_bn", "own": OWN_NOISE}  # fmt: skip
    off = own | {"network": {"name": "n.py:Net", "args": {"p": 0.0}}}
    make_run(tmp_path, "off", config=off, summary=summary_of(noise_modules=0))
    assert rows_of(tmp_path)[1].baseline == "off"


def test_runs_of_one_config_are_joined_whatever_hash_a_version_gave_them(tmp_path: Path) -> None:
    arm(tmp_path, "none", BASE, None)
    config = config_of(noise=dropout(0.5))
    for seed, error in enumerate(LOSSY):
        by = {"config_hash": "of-an-older-one"} if seed == 2 else {}
        make_run(tmp_path, "noisy", seed, 100 - error, config=config, run=by)
    rows, comparison = rows_of(tmp_path, sort="-test_error")
    assert rows["noisy"]["n"] == 3
    assert [group.label for group in comparison.groups] == ["noisy", "none"]
    assert [run.seed for run in comparison.groups[0].runs] == [0, 1, 2]
    assert comparison.groups[0].others == []


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ({"root": "/elsewhere"}, None),
        ({"augment": {"flip": False}}, None),
        ({"train_limit": 100}, "no difference for noisy: not the baseline's data.train_limit"),
    ],
)
def test_the_same_images_are_compared_wherever_they_lie_and_however_augmented(
    tmp_path: Path, data: dict[str, Any], note: str | None
) -> None:
    arm(tmp_path, "none", BASE, None, data={"name": "cifar10", "root": "/there"})
    arm(tmp_path, "noisy", LOSSY, dropout(0.5), data={"name": "cifar10", **data})
    rows, comparison = rows_of(tmp_path)
    assert (rows["noisy"]["difference"] is None) == (note is not None)
    assert [n for n in comparison.notes if n.startswith("no difference")] == (
        [note] if note else []
    )


def test_image_folders_in_two_places_are_other_images(tmp_path: Path) -> None:
    for name, noise in (("none", None), ("noisy", dropout(0.5))):
        arm(tmp_path, name, BASE, noise, data={"name": "imagefolder", "root": f"/{name}"})
    assert "no difference for noisy: not the baseline's data.root" in rows_of(tmp_path)[1].notes


def test_data_of_a_file_is_named_without_its_folder(tmp_path):
    for folder in ("one", "two"):
        make_run(tmp_path, folder, run={"data": f"/home/{folder}/mine.py:make"})
    rows, _ = rows_of(tmp_path)
    assert {row["data"] for row in rows.values()} == {"mine.py:make"}
