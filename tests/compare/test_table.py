"""Rows, statistics and notes, against numbers worked out by hand."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from vshift.compare import COLUMNS, Comparison, compare, to_table
from vshift.errors import VShiftError
from vshift.runs import find_runs


def compared(runs_dir: Path, *more: Path, baseline: str | None = None) -> Comparison:
    return compare(find_runs([runs_dir, *more]), baseline)


def row_of(comparison: Comparison, label: str) -> dict[str, Any]:
    (row,) = [row for row in comparison.rows if row["label"] == label]
    return row


def test_means_and_sample_deviations_by_hand(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((90.0, 92.0, 94.0)):
        ratio = 1.5 + seed / 4
        summary = summary_of(accuracy, shift_ratio_max=ratio, shift_ratio_mean=1.0 + seed)
        make_run(tmp_path, "a", seed, summary=summary)
    (row,) = compared(tmp_path).rows
    assert tuple(row) == COLUMNS
    assert row["n"] == 3
    assert row["seeds"] == [0, 1, 2]
    assert row["test_accuracy_mean"] == 92.0
    assert row["test_accuracy_sd"] == 2.0  # √((4 + 0 + 4) / 2)
    assert row["test_error_mean"] == 8.0
    assert row["test_error_sd"] == 2.0
    assert row["shift_ratio_max"] == 1.75
    assert row["shift_ratio_mean"] == 2.0
    assert row["train_accuracy_eval_mode_mean"] == 99.0
    assert row["train_accuracy_train_mode_mean"] == 98.0
    assert (row["data"], row["epochs"], row["device"]) == ("shapes", 3, "cpu")
    assert (row["images_per_second"], row["parameters"]) == (1000.0, 1234)


def test_speeds_of_several_devices_have_no_mean(tmp_path: Path) -> None:
    for seed, device in enumerate(("cpu", "cuda: NVIDIA H200")):
        make_run(tmp_path, "a", seed, run={"device": device})
    (row,) = compared(tmp_path).rows
    assert (row["device"], row["images_per_second"]) == ("cpu + cuda: NVIDIA H200", None)


def test_uneven_numbers_agree_with_the_statistics_module(tmp_path: Path) -> None:
    accuracies = [91.13, 90.72, 92.401, 88.0]
    for seed, accuracy in enumerate(accuracies):
        make_run(tmp_path, "a", seed, accuracy)
    (row,) = compared(tmp_path).rows
    assert row["test_accuracy_mean"] == pytest.approx(statistics.mean(accuracies), rel=1e-14)
    assert row["test_accuracy_sd"] == pytest.approx(statistics.stdev(accuracies), rel=1e-14)


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    make_run(tmp_path)
    (row,) = compared(tmp_path).rows
    assert row["test_error_mean"] == 10.0
    assert row["test_error_sd"] is None
    assert row["test_accuracy_sd"] is None


def test_the_most_frequent_layer(tmp_path: Path) -> None:
    for seed, layer in enumerate(("early", "late", "late")):
        make_run(tmp_path, "a", seed, summary=summary_of(shift_ratio_max_layer=layer))
    assert compared(tmp_path).rows[0]["shift_ratio_max_layer"] == "late"


def test_a_network_without_bn_has_no_ratios(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("shift_ratio_mean", "shift_ratio_max", "shift_ratio_max_layer"))
    make_run(tmp_path, summary=summary_of(**nothing))
    (row,) = compared(tmp_path).rows
    assert row["n"] == 1
    assert row["shift_ratio_max"] is None
    assert row["shift_ratio_max_layer"] is None


def test_rows_in_natural_order(tmp_path: Path) -> None:
    for name in ("depth-20", "depth-9", "base"):
        make_run(tmp_path, name)
    assert [row["name"] for row in compared(tmp_path).rows] == ["base", "depth-9", "depth-20"]


def test_difference_and_its_standard_error(tmp_path: Path) -> None:
    for seed, (base, noisy) in enumerate([(92.0, 90.0), (94.0, 91.0)]):
        make_run(tmp_path, "base", seed, base)
        make_run(tmp_path, "noisy", seed, noisy, config=config_of(noise=dropout(0.5)))
    make_run(tmp_path, "single", 0, 93.5, config=config_of(noise=dropout(0.1)))
    comparison = compared(tmp_path, baseline="base")
    row = row_of(comparison, "noisy")
    assert row["difference"] == pytest.approx(2.5)
    # variances 2 and 0.5, two seeds each: √(2/2 + 0.5/2)
    assert row["difference_se"] == pytest.approx(math.sqrt(1.25))
    assert row_of(comparison, "single")["difference"] == pytest.approx(-0.5)
    assert row_of(comparison, "single")["difference_se"] is None
    assert row_of(comparison, "base")["difference"] == 0.0
    assert comparison.baseline == "base"
    assert "test error minus that of base, in points" in comparison.about_difference


def test_the_only_config_without_noise_is_the_default_baseline(tmp_path: Path) -> None:
    make_run(tmp_path, "z-clean", config=config_of(noise=dropout(0.0)))
    make_run(tmp_path, "noisy", config=config_of(noise=dropout(0.5)))
    comparison = compared(tmp_path)
    assert comparison.baseline == "z-clean"
    assert "z-clean, the only config without noise" in comparison.about_difference


def test_no_default_baseline_where_two_have_no_noise_or_there_is_one_row(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    assert compared(tmp_path).baseline is None
    make_run(tmp_path, "b", config=config_of(epochs=4))
    make_run(tmp_path, "noisy", config=config_of(noise=[dropout(0.0), dropout(0.5)]))
    comparison = compared(tmp_path)
    assert comparison.baseline is None
    assert all(row["difference"] is None for row in comparison.rows)
    assert comparison.about_difference == ""


def test_a_difference_between_networks_is_noted(tmp_path: Path) -> None:
    make_run(tmp_path, "none")
    other = config_of(noise=dropout(0.5))
    make_run(tmp_path, "wide", config=other | {"network": {**other["network"], "widths": [9]}})
    assert compared(tmp_path).notes == []
    network = {"name": "n.py:Net", "noise": dropout(0.5)}
    make_run(tmp_path, "own", config=other | {"network": network})
    notes = compared(tmp_path).notes
    assert notes == ["own differs from none also in network.name (n.py:Net, not mlp)"]


def test_a_network_without_bn_says_where_its_shift_is(tmp_path: Path) -> None:
    means = {"shift_ratio_mean": None, "shift_ratio_mean_layer_norm": 1.2}
    make_run(tmp_path, "vit", summary=summary_of(**means))
    make_run(tmp_path, "mlp", summary=summary_of(shift_ratio_mean_layer_norm=1.3))
    (note,) = (note for note in compared(tmp_path).notes if "kind of site" in note)
    assert note == (
        "no BN layer in vit: the shift by kind of site is shown by --metrics "
        "shift_ratio_mean_layer_norm"
    )


def test_no_difference_between_data_sets(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", run={"data": "cifar10"})
    comparison = compared(tmp_path, baseline="a")
    assert row_of(comparison, "b")["difference"] is None
    assert comparison.notes == ["no difference for b: not the baseline's data.name"]


def test_no_difference_between_other_images_or_epochs(tmp_path: Path) -> None:
    for name, limit, epochs in (("a", None, 3), ("b", 512, 3), ("c", None, 9)):
        config = config_of(epochs=epochs) | {"data": {"name": "shapes", "train_limit": limit}}
        make_run(tmp_path, name, config=config)
    comparison = compared(tmp_path, baseline="a")
    assert [row_of(comparison, name)["difference"] for name in "abc"] == [0.0, None, None]
    assert comparison.notes == [
        "no difference for b: not the baseline's data.train_limit",
        "no difference for c: not the baseline's epochs",
    ]


def test_several_configs_without_noise_leave_the_choice_to_the_user(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config=config_of(noise=None))
    make_run(tmp_path, "b", config=config_of(noise=None, epochs=4))
    comparison = compared(tmp_path)
    assert comparison.baseline is None
    assert to_table(comparison).notes == [
        "no differences: several configs have no noise; choose a baseline with --baseline: a, b"
    ]


def test_what_a_table_cannot_show_is_said(tmp_path: Path) -> None:
    make_run(tmp_path, "lost", 0, 10.1, config=config_of(noise=dropout(0.5)))
    make_run(tmp_path, "noisy", 0, 60.0, config=config_of(noise=dropout(0.3)))
    runs = find_runs([tmp_path])
    assert to_table(compare(runs)).notes == [
        "no differences: no finished config is without noise; choose a baseline with --baseline: "
        "lost, noisy",
        "at chance level, so that differences say nothing of how much is lost: lost",
    ]
    assert to_table(compare(runs, metrics=["shift_ratio_mean"])).notes == []


def test_an_unknown_baseline_names_the_nearest_and_all(tmp_path: Path) -> None:
    make_run(tmp_path, "baseline")
    make_run(tmp_path, "noisy")
    with pytest.raises(VShiftError) as caught:
        compared(tmp_path, baseline="baselin")
    message = str(caught.value)
    assert "no config has that name; did you mean `baseline`? there are: baseline, noisy" in message
    assert caught.value.exit_code == 2


def test_a_baseline_without_a_finished_run(tmp_path: Path) -> None:
    make_run(tmp_path, "a", status="running")
    with pytest.raises(VShiftError, match="none of its runs is done"):
        compared(tmp_path, baseline="a")


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "diverged"])
def test_unfinished_runs_are_counted_and_named_but_not_averaged(
    tmp_path: Path, status: str
) -> None:
    make_run(tmp_path, "a", 0, 90.0)
    make_run(tmp_path, "a", 1, status=status, summary=summary_of(1.0))
    make_run(tmp_path, "b", 0, status=status)
    comparison = compared(tmp_path)
    assert row_of(comparison, "a")["test_accuracy_mean"] == 90.0
    assert (row_of(comparison, "a")["n"], row_of(comparison, "a")["left_out"]) == (1, 1)
    assert (row_of(comparison, "b")["n"], row_of(comparison, "b")["left_out"]) == (0, 1)
    assert row_of(comparison, "b")["test_accuracy_mean"] is None
    assert any(f"a seed 1: {'unfinished' if status == 'running' else status}" in note
               for note in comparison.notes)  # fmt: skip
    assert len(comparison.notes) == 2


def test_damaged_runs_are_named_with_the_damage(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 0)
    (make_run(tmp_path, "a", 1) / "summary.json").write_text("{")
    (make_run(tmp_path, "a", 2) / "run.json").write_text("{")
    make_run(tmp_path, "a", 3, summary={"test_accuracy": None})
    make_run(tmp_path, "a", 4, summary={"test_accuracy": "99"})
    comparison = compared(tmp_path)
    (row,) = comparison.rows  # the one without a readable hash stays with its namesakes
    assert (row["n"], row["left_out"]) == (1, 4)
    notes = "\n".join(comparison.notes)
    assert "a seed 1: " in notes
    assert "summary.json is damaged" in notes
    assert "run.json is damaged" in notes
    assert "a seed 3: its summary.json has no test_accuracy" in notes
    assert "a seed 4: its summary.json has no test_accuracy" in notes


def test_a_damaged_config_of_a_used_run_is_noted(tmp_path: Path) -> None:
    (make_run(tmp_path, "a") / "config.yaml").write_text("[")
    comparison = compared(tmp_path)
    assert (comparison.rows[0]["n"], comparison.rows[0]["epochs"]) == (1, None)
    assert "config.yaml is damaged" in comparison.notes[0]


def test_the_same_seed_in_two_folders_counts_once_and_is_flagged(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    make_run(first, "a", 0, 90.0)
    make_run(second, "a", 0, 80.0)
    make_run(second, "a", 1, 92.0)
    comparison = compared(first, second)
    (row,) = comparison.rows
    assert (row["n"], row["test_accuracy_mean"]) == (2, 91.0)
    (note,) = comparison.notes
    assert "the same config and seed are in" in note
    assert str(second / "a" / "seed-0") in note


def test_two_configs_under_one_name_are_two_marked_rows(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "a", 0, 90.0)
    make_run(tmp_path / "two", "a", 0, 80.0, config=config_of(epochs=9))
    comparison = compared(tmp_path)
    labels = [row["label"] for row in comparison.rows]
    assert [row["name"] for row in comparison.rows] == ["a", "a"]
    assert len(set(labels)) == 2
    assert all(label.startswith("a (") for label in labels)
    assert "a is the name of different configs" in comparison.notes[0]
    with pytest.raises(VShiftError, match="different configs have this name; give one of `a "):
        compared(tmp_path, baseline="a")
    assert compared(tmp_path, baseline=labels[1]).baseline == labels[1]


def test_wild_numbers_do_not_enter_means(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    text = '{"test_accuracy": 90, "shift_ratio_max": 1e999, "shift_ratio_mean": true,'
    (path / "summary.json").write_text(text + f' "parameters": 1{"0" * 400}}}')
    (row,) = compared(tmp_path).rows
    assert row["test_error_mean"] == 10
    assert row["shift_ratio_max"] is None
    assert row["shift_ratio_mean"] is None
    assert row["parameters"] is None


def test_notes_show_control_characters(tmp_path: Path) -> None:
    make_run(tmp_path, "a", status="failed", run={"name": "x\n\x1b[2J"})
    assert "\\x1b[2J" in compared(tmp_path).notes[0]
    assert "\n" not in compared(tmp_path).notes[0]


def test_the_frame_has_types(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", status="failed")
    frame = compared(tmp_path).frame
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["n"]) == [1, 0]
    assert frame["test_accuracy_mean"].dtype == "float64"
    assert frame["test_accuracy_mean"].isna().tolist() == [False, True]


def test_300_runs_take_under_3_seconds(tmp_path: Path) -> None:
    layers = [{"epoch": epoch, "layer": "bn", "train_variance": 1.0} for epoch in range(1000)]
    for index in range(100):
        for seed in range(3):
            make_run(tmp_path, f"config-{index}", seed, 90 + seed, layers=layers)
    start = time.perf_counter()
    comparison = compared(tmp_path)
    assert len(comparison.rows) == 100
    assert time.perf_counter() - start < 3
