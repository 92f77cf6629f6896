"""Rows by config values: what is put together, what is flagged, and what counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from vshift.compare import Comparison, compare
from vshift.compare.fields import Fields
from vshift.compare.groups import (
    NO_NOISE,
    Group,
    Noise,
    differing_keys,
    layout_pairs,
    short_heads,
)
from vshift.compare.statistics import Sample, welch
from vshift.errors import VShiftError
from vshift.runs import find_runs

RATE, POSITION = "network.noise.rate", "network.noise.position"


def grouped(runs_dir: Path, *by: str, **options: Any) -> Comparison:
    return compare(find_runs([runs_dir]), by=by, **options)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two rates by two positions and none, three seeds each."""
    for seed in range(3):
        make_run(tmp_path, "none", seed, 95.0 + seed / 10)
        for rate in (0.1, 0.5):
            for position in ("before_last_bn", "before_last_conv"):
                noise = {**dropout(rate), "position": position}
                cost = 20 * rate * (2 if position == "before_last_bn" else 1)
                accuracy = 95.0 + seed / 10 - cost
                make_run(
                    tmp_path, f"{position}-{rate}", seed, accuracy, config=config_of(noise=noise)
                )
    return tmp_path


def test_a_row_for_each_combination_of_values_in_their_order(grid: Path) -> None:
    comparison = grouped(grid, RATE, POSITION)
    assert [(row[RATE], row[POSITION], row["n"]) for row in comparison.rows] == [
        (None, None, 3),
        (0.1, "before_last_bn", 3),
        (0.1, "before_last_conv", 3),
        (0.5, "before_last_bn", 3),
        (0.5, "before_last_conv", 3),
    ]
    assert comparison.rows[3]["label"] == "rate=0.5 position=before_last_bn"
    assert comparison.rows[3]["test_error_mean"] == pytest.approx(24.9)
    assert comparison.baseline == "rate=none position=none"
    assert comparison.rows[3]["difference"] == pytest.approx(20.0)
    assert comparison.notes == []


def test_differences_carry_welchs_interval_and_holms_p(grid: Path) -> None:
    rows = grouped(grid, RATE, POSITION).rows
    base = Sample(3, rows[0]["test_error_mean"], rows[0]["test_error_sd"])
    p_values = []
    for row in rows[1:]:
        found = welch(Sample(3, row["test_error_mean"], row["test_error_sd"]), base)
        assert row["difference_low"] == pytest.approx(found.low)
        assert row["difference_high"] == pytest.approx(found.high)
        assert row["difference_se"] == pytest.approx(found.standard_error)
        assert row["p_value"] == pytest.approx(found.p_value)
        assert row["verdict"].startswith("significant (p ")
        p_values.append(row["p_value"])
    largest, smallest = max(p_values), min(p_values)
    by_p = {row["p_value"]: row["p_adjusted"] for row in rows[1:]}
    assert by_p[smallest] == pytest.approx(4 * smallest)
    assert by_p[largest] >= largest
    assert rows[0]["p_value"] is None


def test_runs_put_together_that_differ_otherwise_are_flagged_with_keys_and_values(
    grid: Path,
) -> None:
    comparison = grouped(grid, RATE)
    assert [row["n"] for row in comparison.rows] == [3, 6, 6]
    assert (
        f"rate=0.1 puts runs together that differ in {POSITION} (before_last_bn, before_last_conv)"
        in comparison.notes
    )


def test_rows_that_differ_in_more_than_the_studied_keys_are_flagged(grid: Path) -> None:
    odd = config_of(noise=dropout(0.7)) | {"optimizer": {"learning_rate": 0.03}}
    make_run(grid, "odd", 0, 60.0, config=odd)
    comparison = grouped(grid, RATE, POSITION)
    (note,) = comparison.notes
    assert note == (
        "rate=0.7 position=before_last_bn differs from rate=none position=none also in "
        "optimizer.learning_rate (0.03, not 0.1)"
    )
    assert comparison.rows[-1]["differs_in"] == ["network.noise", "optimizer.learning_rate"]


def test_the_same_training_twice_is_one_observation(grid: Path) -> None:
    again = config_of(noise=dropout(0.5)) | {"recalibration": {"moments": "variance"}}
    for seed in range(3):
        make_run(grid, "again", seed, 75.0 + seed / 10, config=again)
    comparison = grouped(grid, RATE, POSITION)
    assert [row["n"] for row in comparison.rows] == [3, 3, 3, 3, 3]
    assert comparison.rows[3]["left_out"] == 3
    (note,) = [note for note in comparison.notes if note.startswith("left out")]
    assert "before_last_bn-0.5 seeds 0, 1, 2: the same config and seeds are in" in note
    assert "again" in note


def test_two_settings_that_train_nothing_do_not_make_two_observations(grid: Path) -> None:
    for key, more in (("often", {"checkpoint": {"every": 2}}), ("short", {"epochs": 3})):
        config = config_of(noise=dropout(0.5)) | {"measure": {"eval_batches": 4}} | more
        for seed in range(3):
            make_run(grid, key, seed, 75.0 + seed / 10, config=config)
    comparison = grouped(grid, RATE, POSITION)
    assert [row["n"] for row in comparison.rows] == [3, 3, 3, 3, 3]
    assert comparison.rows[3]["left_out"] == 6


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.5, "significant"), (0.0, "not tested (same training)")]
)
def test_kinds_of_step_draw_other_noise(tmp_path: Path, rate: float, verdict: str) -> None:
    """So they are other observations where there is noise to draw."""
    for step, accuracy in (("eager", 90.0), ("fused", 80.0)):
        config = config_of(noise=dropout(rate))
        for seed in range(3):
            run = {"step": step, "config_hash": None}
            make_run(tmp_path, step, seed, accuracy + seed / 10, config=config, run=run)
    comparison = grouped(tmp_path, "run.step", baseline="step=eager")
    assert comparison.rows[1]["n"] == 3
    assert comparison.rows[1]["verdict"].startswith(verdict)


def test_what_auto_became_is_part_of_a_run(tmp_path: Path) -> None:
    """One config, trained where float32 was faster and where bf16 was."""
    for seed, precision in enumerate(["bf16", "bf16", "float32"]):
        config = config_of() | {"hardware": {"precision": precision}}
        run = {"precision": precision, "step": "fused", "config_hash": "0123456789abcdef"}
        make_run(tmp_path, "a", seed, 90.0 + seed, config=config, run=run)
    comparison = compare(find_runs([tmp_path]))
    (row,) = comparison.rows
    assert row["n"] == 3
    assert comparison.notes == [
        "a puts runs together that differ in hardware.precision (bf16, float32): `auto` chose on "
        "the machine of each run; set it to compare like with like"
    ]
    config = config_of() | {"hardware": {"precision": "float32"}}
    run = {"precision": "float32", "step": "fused", "config_hash": "0123456789abcdef"}
    make_run(tmp_path, "a", 0, 80.0, config=config, run=run, folder="elsewhere")
    rows = grouped(tmp_path, "hardware.precision").rows
    assert [(row["label"], row["n"]) for row in rows] == [
        ("precision=bf16", 2), ("precision=float32", 2),
    ]  # fmt: skip
    fields = Fields(find_runs([tmp_path]))
    same_seed = [run for run in fields.runs if run.seed == 0]
    assert len({fields.training(run) for run in same_seed}) == 2


def test_by_name_seed_status_and_metric(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 0, 90.0, summary=summary_of(90.0, recalibration="precise"))
    make_run(tmp_path, "a", 1, 91.0)
    make_run(tmp_path, "b", 1, 80.0, config=config_of(noise=dropout(0.5)))
    make_run(tmp_path, "b", 2, status="diverged", config=config_of(noise=dropout(0.5)))
    assert [(r["name"], r["label"], r["n"]) for r in grouped(tmp_path, "name").rows] == [
        ("a", "a", 2), ("b", "b", 1),
    ]  # fmt: skip
    assert [row["seed"] for row in grouped(tmp_path, "seed").rows] == [0, 1, 2]
    status = grouped(tmp_path, "status").rows
    assert [(r["status"], r["n"], r["left_out"]) for r in status] == [
        ("diverged", 0, 1), ("done", 3, 0),
    ]  # fmt: skip
    assert [row["recalibration"] for row in grouped(tmp_path, "recalibration").rows] == [
        None, "precise",
    ]  # fmt: skip


def test_runs_with_an_unreadable_config_get_a_row_of_their_own(grid: Path) -> None:
    for seed in range(3):
        (grid / "none" / f"seed-{seed}" / "config.yaml").write_text("[")
    comparison = grouped(grid, RATE)
    assert [(row["label"], row["n"], row["left_out"]) for row in comparison.rows] == [
        ("rate=0.1", 6, 0),
        ("rate=0.5", 6, 0),
        ("unknown", 0, 3),
    ]
    assert any(
        "none seed 0: its config.yaml does not say network.noise" in n for n in comparison.notes
    )


def test_a_key_that_no_run_has_is_refused_with_the_nearest(grid: Path) -> None:
    with pytest.raises(VShiftError) as caught:
        grouped(grid, "network.noise.rat")
    message = str(caught.value)
    assert "--by network.noise.rat: no run has such a field; did you mean" in message
    assert "did you mean `network.noise.rate`?" in message
    assert "of summary.json: test_accuracy" in message
    with pytest.raises(VShiftError, match=r"it is now `norm\.update_running_stats`\n"):
        grouped(grid, "norm.update")


def test_metrics_of_any_name_with_their_spread(grid: Path) -> None:
    for row in grouped(grid, RATE, metrics=("shift_ratio_mean", "shift_ratio_max_layer")).rows:
        assert row["shift_ratio_mean_mean"] == 1.05
        assert row["shift_ratio_mean_sd"] == 0.0
        assert row["shift_ratio_max_layer"] == "block2.bn1"
    with pytest.raises(VShiftError) as caught:
        grouped(grid, RATE, metrics=("shift_ratio",))
    assert "--metrics shift_ratio: no summary.json has it; did you mean" in str(caught.value)
    assert "train_accuracy_eval_mode" in str(caught.value)


def test_the_difference_of_another_metric(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, "none", seed, summary=summary_of(validation_error=9.0 + seed))
        summary = summary_of(validation_error=19.0 + seed)
        make_run(tmp_path, "noisy", seed, config=config_of(noise=dropout(0.5)), summary=summary)
    comparison = grouped(tmp_path, RATE, difference="validation_error")
    assert comparison.rows[1]["difference"] == 10.0
    assert "validation error minus that of rate=none" in comparison.about_difference
    assert comparison.rows[0]["validation_error_mean"] == 9.5
    assert comparison.rows[0]["test_error_mean"] == 10.0


def test_sorting_puts_missing_values_last_either_way(grid: Path) -> None:
    make_run(grid, "failed", status="failed", config=config_of(noise=dropout(0.9)))
    up = [row[RATE] for row in grouped(grid, RATE, sort="test_error").rows]
    down = [row[RATE] for row in grouped(grid, RATE, sort="-test_error").rows]
    assert (up, down) == ([None, 0.1, 0.5, 0.9], [0.5, 0.1, None, 0.9])
    names = compare(find_runs([grid]), sort="-name").rows
    assert names[0]["name"] == "none"
    by_rate = [row["name"] for row in compare(find_runs([grid]), sort=RATE).rows]
    assert by_rate[0] == "before_last_bn-0.1"
    assert by_rate[-2:] == ["failed", "none"]
    with pytest.raises(VShiftError, match="is a section"):
        compare(find_runs([grid]), sort="network")
    with pytest.raises(
        VShiftError, match="there is no such column; did you mean `shift_ratio_max`"
    ):
        grouped(grid, RATE, sort="shift_ratio_maxx")


def test_sorting_by_the_test_set_where_there_is_a_validation_set_is_remarked(
    tmp_path: Path,
) -> None:
    make_run(tmp_path, "a", summary=summary_of(validation_error=9.0))
    (note,) = compare(find_runs([tmp_path]), sort="test_error").notes
    assert "to choose a setting, sort by validation_error" in note
    assert compare(find_runs([tmp_path]), sort="validation_error").notes == []


def test_equal_configs_with_two_hashes_share_a_row(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 0, 90.0)
    make_run(tmp_path, "a", 1, 92.0, run={"config_hash": "0" * 16})
    comparison = compare(find_runs([tmp_path]))
    assert [(row["label"], row["n"]) for row in comparison.rows] == [("a", 2)]
    assert "the configs are equal and share a row" in comparison.notes[0]


def test_configs_say_in_which_keys_they_differ_from_the_baseline(tmp_path: Path) -> None:
    make_run(tmp_path, "none")
    make_run(tmp_path, "noisy", config=config_of(noise=dropout(0.5)))
    make_run(tmp_path, "odd", config=config_of(noise=dropout(0.5), epochs=9))
    rows = {row["name"]: row["differs_in"] for row in compare(find_runs([tmp_path])).rows}
    assert rows == {"none": [], "noisy": ["network.noise"], "odd": ["network.noise", "epochs"]}


def test_a_baseline_may_be_named_by_one_of_its_configs(grid: Path) -> None:
    comparison = grouped(grid, RATE, POSITION, baseline="before_last_bn-0.1")
    assert comparison.baseline == "rate=0.1 position=before_last_bn"


def test_only_the_last_epoch_counts(tmp_path: Path) -> None:
    """summary.json's numbers are the last epoch's; a better one in metrics.jsonl is not taken."""
    make_run(tmp_path, "a", 0, 90.0, metrics=[{"epoch": 1, "test_accuracy": 99.0}])
    assert compare(find_runs([tmp_path])).rows[0]["test_accuracy_mean"] == 90.0


def test_a_row_of_runs_of_several_lengths_has_no_difference(grid: Path) -> None:
    """Put together by rate, runs of 3 and of 9 epochs: their mean is no score of either."""
    config = {**config_of(noise=dropout(0.5)), "epochs": 9}
    make_run(grid, "longer", 0, 50.0, config=config)
    comparison = grouped(grid, RATE)
    rows = {row["name"]: row for row in comparison.rows}
    assert rows["rate=0.5"]["difference"] is None
    assert rows["rate=0.1"]["difference"] == pytest.approx(3.0)
    assert "no difference for rate=0.5: runs of rate=0.5 differ in epochs" in comparison.notes
    make_run(grid, "clean", 0, 50.0, config={**config_of(), "epochs": 9})
    comparison = grouped(grid, RATE)
    assert [row["difference"] for row in comparison.rows if row["name"] == "rate=0.1"] == [None]


def groups_of(runs: Path, **options: Any) -> dict[str, Group]:
    return {group.label: group for group in compare(find_runs([runs]), **options).groups}


def test_a_group_knows_its_noise(tmp_path: Path) -> None:
    make_run(tmp_path, "none")
    make_run(tmp_path, "half", config=config_of(noise=dropout(0.5)))
    gaussian = {"kind": "gaussian", "sigma": 2.0, "position": "after_bn", "unit": "channel"}
    make_run(tmp_path, "two", config=config_of(noise=[dropout(0.2), gaussian]))
    (make_run(tmp_path, "damaged") / "config.yaml").write_text("[")
    groups = groups_of(tmp_path)
    assert groups["none"].noise == groups["damaged"].noise == Noise(NO_NOISE, "", 0.0)
    assert groups["half"].noise == Noise("before_last_bn", "0.5", 1.0)
    layout = "before_last_bn + after_bn with gaussian per channel"
    assert groups["two"].noise == Noise(layout, "0.2 + σ 2", None)


def noise_of(config: dict[str, Any]) -> Noise:
    return Group("a", None, "a", (), [], [], config).noise


def test_layouts_strengths_and_variances() -> None:
    def of(noise: object) -> Noise:
        return noise_of({"network": {"noise": noise}})

    assert of(None) == Noise(NO_NOISE, "", 0.0)
    assert of({**dropout(0.0)}) == Noise(NO_NOISE, "", 0.0)
    assert of(dropout(0.5)) == Noise("before_last_bn", "0.5", 1.0)
    uniform = {"kind": "uniform", "beta": 0.3, "position": "before_bn", "unit": "channel"}
    found = of(uniform)
    assert (found.layout, found.strength) == ("before_bn with uniform per channel", "β 0.3")
    assert found.variance == pytest.approx(0.03)
    assert of({"kind": "gaussian", "sigma": 2, "position": "after_bn"}).variance == 4
    two = [dropout(0.5), {**dropout(0.1), "position": "before_classifier"}]
    assert of(two) == Noise("before_last_bn + before_classifier", "0.5 + 0.1", None)
    pattern = {"kind": "dropout", "rate": 0.5, "before": "layer*.bn2"}
    assert of(pattern) == Noise("before layer*.bn2", "0.5", 1.0)
    several = {**dropout(0.5), "before": None, "after": ["conv1", "relu"]}
    assert of(several).layout == "before_last_bn and after conv1 and after relu"
    early = {**dropout(0.5), "until": 0.3, "over_depth": "linear"}
    layout = "before_last_bn growing linearly over the blocks until 0.3 of the run"
    assert of(early) == Noise(layout, "0.5", 1.0)
    block = {"network": {"block": "bn noise", "noise": {"kind": "dropout", "rate": 0.5}}}
    assert noise_of(block).layout == "in bn noise"
    for odd in ({}, {"network": 3}, {"network": {"noise": ["x", 4]}}):
        assert noise_of(odd).layout == NO_NOISE


def test_the_keys_in_which_groups_differ_with_each_groups_value(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", config={**config_of(noise=dropout(0.5)), "checkpoint": {"minutes": 1}})
    make_run(tmp_path, "c", config={**config_of(noise=dropout(0.1)), "hardware": {"threads": 3}})
    (make_run(tmp_path, "d") / "config.yaml").write_text("[")
    found = differing_keys(list(groups_of(tmp_path).values()))
    assert found == {
        "network.noise.kind": [None, "dropout", "dropout", None],
        "network.noise.position": [None, "before_last_bn", "before_last_bn", None],
        "network.noise.rate": [None, 0.5, 0.1, None],
        "network.noise.unit": [None, "element", "element", None],
    }
    assert short_heads(sorted(found)) == ["kind", "position", "rate", "unit"]
    assert short_heads(["network.name", "data.name", "epochs"]) == [
        "network.name", "data.name", "epochs",
    ]  # fmt: skip


def test_pairs_of_layouts_differ_in_nothing_but_where_the_noise_sits(tmp_path: Path) -> None:
    conv = {**dropout(0.5), "position": "before_last_conv"}
    matched = {"kind": "gaussian", "sigma": 1.0, "position": "after_bn"}  # s² of rate 0.5
    for name, noise in (("bn", dropout(0.5)), ("conv", conv), ("matched", matched)):
        make_run(tmp_path, name, config={**config_of(noise=noise), "checkpoint": {"minutes": 2}})
    make_run(tmp_path, "bn-weak", config=config_of(noise=dropout(0.1)))
    make_run(tmp_path, "conv-long", config=config_of(noise=conv, epochs=9))
    make_run(tmp_path, "none")
    pairs = layout_pairs(list(groups_of(tmp_path, baseline="none").values()))
    assert [(one.label, other.label) for one, other in pairs] == [
        ("conv", "bn"), ("matched", "bn"), ("matched", "conv"),
    ]  # fmt: skip
