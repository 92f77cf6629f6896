"""Run folders → frames and groups: the numbers, worked out by hand, and what damage does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.factory import config_of, dropout, make_run, summary_of
from tests.report.study import EVIL, LAYERS, make_study
from vshift.errors import RunError
from vshift.report.answers.shift import first_shifted
from vshift.report.charts import AS_TRAINED
from vshift.report.figures import frames
from vshift.report.layouts import short_labels
from vshift.report.study import Study, collect, read_layers, short_layer, thinned
from vshift.runs import find_runs


def test_groups_are_the_rows_of_compare_with_the_rest_named(study: Study) -> None:
    used = {g.label: [run.seed for run in g.runs] for g in study.used}
    assert used == {
        EVIL: [0],
        "arm-bn-0.3": [0, 1, 2],
        "arm-bn-0.5": [0, 1, 2],
        "arm-conv-0.5": [0, 1, 2],
        "arm-none": [0, 1, 2],
    }
    others = {(run.name, run.status) for g in study.groups for run in g.others}
    assert others == {("arm-running", "running"), ("arm-diverged", "diverged"),
        ("arm-damaged", "damaged")}  # fmt: skip
    assert [g.label for g in study.groups if g.is_baseline] == ["arm-none"]


def test_what_all_names_begin_with_is_left_out() -> None:
    assert short_labels(["a-last-bn", "a-last-conv"]) == ["bn", "conv"]
    assert short_labels(["a-rate-0.1", "a-rate-0.3"]) == ["a-rate-0.1", "a-rate-0.3"]
    assert short_labels(["a-b"]) == ["a-b"]
    assert short_labels(["a-b", "a-b-c"]) == ["a-b", "a-b-c"]


def test_short_layers() -> None:
    assert short_layer("stage2.block10.branch.bn1") == "s2.b10.bn1"
    assert short_layer("head.bn1") == "head.bn1"


def test_more_configs_than_hues_share_a_hue_by_layout_in_shades(tmp_path: Path) -> None:
    for rate in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        make_run(tmp_path, f"a-{rate}", config=config_of("a", dropout(rate)))
    make_run(tmp_path, "a-none", config=config_of("a"))
    groups = collect(find_runs([tmp_path])).used
    colours = [g.colour for g in groups]
    assert len(set(colours)) == 8
    assert groups[-1].colour == "#8a8a8a"
    reds = [int(colour[1:3], 16) for colour in colours[:7]]
    assert reds == sorted(reds, reverse=True)  # stronger is darker


def test_where_nothing_has_noise_configs_are_told_apart_too(tmp_path: Path) -> None:
    for i in range(8):
        make_run(tmp_path, f"a-{i}", config=config_of() | {"epochs": 3 + i})
    groups = collect(find_runs([tmp_path]), "a-3").used
    assert len({(g.colour, g.shape) for g in groups}) == 8
    assert [g.label for g in groups if g.colour == "#8a8a8a"] == ["a-3"]


def test_means_over_seeds_by_depth(tmp_path: Path) -> None:
    for seed, ratio in enumerate((1.5, 1.7)):
        layer = {"epoch": 2, "index": 1, "layer": "l", "noise_before": True, "shift_ratio": ratio,
            "shift_ratio_se": 0.02, "local_ratio": ratio, "predicted_ratio": 1.6}  # fmt: skip
        earlier = {**layer, "epoch": 1, "shift_ratio": None}
        make_run(
            tmp_path, "a", seed, config=config_of(epochs=2), layers=[earlier, layer],
            summary=summary_of(bn_layers=1),
        )  # fmt: skip
    study = collect(find_runs([tmp_path]))
    (row,) = study.depth.to_dict("records")
    assert row["ratio"] == pytest.approx(1.6)
    assert row["sd"] == pytest.approx(0.02**0.5)
    assert row["n"] == 2
    assert row["se"] == pytest.approx(0.1)  # sd/√2: larger than 0.02/√2
    assert row["predicted"] == pytest.approx(1.6)
    assert len(study.predictions) == 2


def test_other_sites_than_bn_layers_have_a_frame_of_their_own(tmp_path: Path) -> None:
    def row(
        index: int, layer: str, kind: str, epoch: int = 2, **values: object
    ) -> dict[str, object]:
        return {"epoch": epoch, "index": index, "layer": layer, "kind": kind, **values}

    for seed in (0, 1):
        layers = [
            row(0, "bn1", "bn", shift_ratio=1.2, lag_ratio=1.1, cause="lag"),
            row(1, "relu1", "activation", 1, shift_ratio=None),
            row(1, "relu1", "activation", mean_shift=0.1 + seed, shift_ratio=3.0, cause="shift"),
            row(2, "bn2", "bn", shift_ratio=1.4, cause=None),
            row(3, "relu2", "activation", mean_shift=0.5, shift_ratio=2.0),
            row(4, "?", "nobody's", shift_ratio=9.0),
        ]
        make_run(tmp_path, "a", seed, config=config_of(epochs=2), layers=layers)
    study = collect(find_runs([tmp_path]))
    assert study.depth["layer"].tolist() == list(study.layers) == ["bn1", "bn2"]
    assert set(study.epochs["layer"]) == set(study.layer_table["layer"]) == {"bn1", "bn2"}
    found = study.sites.set_index("layer")
    assert sorted(found.index) == ["bn1", "bn2", "relu1", "relu2"]
    assert found["number"].to_dict() == {"bn1": 1, "bn2": 2, "relu1": 1, "relu2": 2}
    assert found.loc["relu1", "mean_shift"] == pytest.approx(0.6)
    assert found["cause"].to_dict() == {"bn1": "lag", "bn2": "", "relu1": "shift", "relu2": ""}
    assert set(found["n"]) == {2}


def test_lag_is_no_beginning_of_a_shift(tmp_path: Path) -> None:
    base = {"epoch": 3, "shift_ratio_se": 0.01, "shift_ratio": 1.4}
    layers = [
        {**base, "index": 0, "layer": "bn1", "cause": "lag"},
        {**base, "index": 1, "layer": "bn2", "cause": "shift"},
    ]
    make_run(tmp_path, "clean", layers=layers)
    assert first_shifted(collect(find_runs([tmp_path]))) == {"clean": "bn2"}
    make_run(tmp_path, "a", layers=layers, config=config_of("a", dropout(0.3)))
    make_run(tmp_path, "b", layers=layers[:1], config=config_of("b", dropout(0.1)))
    assert first_shifted(collect(find_runs([tmp_path]))) == {"a": "bn2", "b": None}


def test_the_beginning_is_where_noise_itself_shifts(tmp_path: Path) -> None:
    """A ratio of 1.09 of which the noise makes 1.00 is none of its doing."""
    base = {"epoch": 3, "shift_ratio_se": 0.01, "cause": "shift"}
    layers = [
        {**base, "index": 0, "layer": "bn1", "shift_ratio": 1.09, "total_ratio": 1.0},
        {**base, "index": 1, "layer": "bn2", "shift_ratio": 1.3, "total_ratio": 1.28},
    ]
    make_run(tmp_path, "a", layers=layers, config=config_of("a", dropout(0.3)))
    assert first_shifted(collect(find_runs([tmp_path]))) == {"a": "bn2"}


def test_histograms_count_every_channel_once(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", layers=[{"epoch": 3, "index": 0, "layer": "l"}])
    kept_, met = np.ones(4, np.float32), np.array([0.25, 0.5, 0.5, 0.0], np.float32)
    save_file({"l.running_variance": kept_, "l.eval_variance": met}, path / "channels.safetensors")
    rows = collect(find_runs([tmp_path])).channels
    shares = rows[rows["share"] > 0].sort_values("from")["share"].tolist()
    assert shares == pytest.approx([1 / 3, 2 / 3])  # a dead channel has no ratio
    assert rows["from"].min() <= 0.25
    assert all(rows["from"] <= rows["to"])


def test_curves_have_mean_and_spread(study: Study) -> None:
    rows = study.curves[study.curves["group"] == "arm-none"].sort_values("epoch")
    last = rows.iloc[-1]
    assert last["test_accuracy"] == pytest.approx(np.mean([90.0, 89.4, 90.5]))
    spread = np.std([90.0, 89.4, 90.5], ddof=1)
    assert last["test_accuracy_high"] - last["test_accuracy"] == pytest.approx(spread)
    assert last["n"] == 3
    assert not [name for name in rows.columns if name.startswith("validation")]


def test_validation_scores_have_curves_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, metrics=[{"epoch": 1, "test_accuracy": 3.0, "validation_accuracy": 4.0}])
    (row,) = collect(find_runs([tmp_path])).curves.to_dict("records")
    assert (row["test_accuracy"], row["validation_accuracy"]) == (3.0, 4.0)


def test_modes_and_recalibration(study: Study) -> None:
    cell = study.modes[
        (study.modes["group"] == "arm-bn-0.5")
        & (study.modes["data"] == "test")
        & (study.modes["noise"] == "off")
        & (study.modes["statistics"] == "batch")
    ]
    assert cell["value"].item() == pytest.approx(np.mean([61.0, 60.4, 61.5]))
    rows = study.recalibration
    precise = rows[(rows["group"] == "arm-bn-0.5") & (rows["method"] == "precise")]
    assert sorted(precise["value"]) == pytest.approx([19.75, 20.0, 20.3])


def test_calibration_is_of_every_method_that_has_scores(study: Study) -> None:
    rows = study.calibration
    own = rows[(rows["group"] == "arm-bn-0.5") & (rows["seed"] == 0)]
    found = {(row["method"], row["score"]): row["value"] for row in own.to_dict("records")}
    assert found == {
        ("none", "ECE, %"): 10.0, ("precise", "ECE, %"): 5.0, ("monte_carlo", "ECE, %"): 8.0,
        ("none", "NLL, nats"): 1.0, ("precise", "NLL, nats"): 0.8,
        ("monte_carlo", "NLL, nats"): 0.9,
        ("none", "Brier score"): 0.8, ("precise", "Brier score"): 0.4,
    }  # fmt: skip
    shown = frames(study)["calibration"]
    trained = shown[(shown["group"] == "arm-bn-0.5") & (shown["method"] == AS_TRAINED)]
    assert trained["value"].iloc[0] == pytest.approx(np.mean([10.0, 10.15, 9.875]))


def test_what_recalibrate_measured_later_counts(tmp_path: Path) -> None:
    path = make_run(tmp_path, summary=summary_of(monte_carlo_ece=3.0, monte_carlo_brier=0.3))
    later = [{"method": "monte_carlo", "test_accuracy": 90.0, "test_ece": 2.0}]
    (path / "recalibration.json").write_text(json.dumps({"methods": later}))
    rows = collect(find_runs([tmp_path])).calibration
    assert dict(zip(rows["score"], rows["value"], strict=True)) == {
        "ECE, %": 2.0, "Brier score": 0.3
    }  # fmt: skip


def test_epochs_are_thinned_evenly_with_first_and_last() -> None:
    assert thinned(list(range(1, 101)), 4) == [1, 34, 67, 100]
    assert thinned([1, 2, 3], 5) == [1, 2, 3]


def test_only_the_epochs_asked_for_are_read(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "index": 0, "layer": "l"} for epoch in range(1, 31)]
    path = make_run(tmp_path, layers=rows)
    assert [row["epoch"] for row in read_layers(path, [3, 30, 99])] == [3, 30]
    # Written by another hand: other spaces, another order.
    lines = ['{"index":0, "epoch":3, "layer":"l"}', '{"epoch":4,"index":0,"layer":"l"}']
    (path / "layers.jsonl").write_text("\n".join(lines) + "\n")
    assert [row["epoch"] for row in read_layers(path, [4])] == [4]


def test_a_torn_last_line_is_dropped_and_damage_before_it_is_named(tmp_path: Path) -> None:
    path = make_run(tmp_path, layers=[{"epoch": 1, "index": 0}])
    with (path / "layers.jsonl").open("a") as file:
        file.write('{"epoch": 2, "ind')
    assert len(read_layers(path, [1, 2])) == 1
    with (path / "layers.jsonl").open("a") as file:
        file.write('\n{"epoch": 3, "index": 0}\n')
    with pytest.raises(RunError, match=r"layers\.jsonl:2 is damaged"):
        read_layers(path, [1, 2, 3])


def test_damaged_files_become_problems_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", seeds=1)
    run = folder / "arm-none" / "seed-0"
    (run / "channels.safetensors").write_bytes(b"\xff" * 20)
    (run / "modes.json").write_text("[1]")
    (run / "recalibration.json").write_text(json.dumps({"methods": [3, {"method": None}]}))
    (run / "layers.jsonl").write_text("{\n{}\n")
    study = collect(find_runs([folder]))
    for name in ("channels.safetensors", "modes.json", "layers.jsonl:1"):
        assert any(name in problem for problem in study.problems)
    assert set(study.depth["group"]) == {EVIL, "arm-bn-0.3", "arm-bn-0.5", "arm-conv-0.5"}
    assert list(study.layers)[:3] == list(LAYERS)


def test_where_nothing_is_classified_the_score_is_the_loss(tmp_path: Path) -> None:
    for seed in (0, 1):
        summary = {"test_loss": 0.5 + seed / 10, "test_accuracy": None, "parameters": 3}
        make_run(tmp_path, "a", seed, summary=summary)
    study = collect(find_runs([tmp_path]))
    assert study.score == "test_loss"
    assert study.runs["score"].tolist() == [0.5, 0.6]
