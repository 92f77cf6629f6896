"""`load_runs`: tidy tables, in which no run is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from vshift import load_runs
from vshift.errors import RunError
from vshift.runs.schema import EPOCH_COLUMNS, LAYER_COLUMNS

OLD = Path(__file__).parent / "old_run"
METRICS = [{"epoch": 1, "test_loss": 0.5}, {"epoch": 2, "test_loss": 0.25}]
LAYERS = [
    {"epoch": 2, "layer": f"bn{i}", "shift_ratio": 1.5, "eval_variance": None} for i in (1, 2)
]


def small(runs: Path, name: str = "a", seed: int = 0, **options: object) -> Path:
    config = config_of(name, dropout(0.5))
    return make_run(runs, name, seed, config=config, metrics=METRICS, layers=LAYERS, **options)  # type: ignore[arg-type]


def test_tables_begin_with_name_and_seed_and_have_the_configs_keys(tmp_path: Path) -> None:
    small(tmp_path, seed=1)
    small(tmp_path, seed=0)
    runs = load_runs(tmp_path)
    assert [len(frame) for frame in (runs.summary, runs.metrics, runs.layers)] == [2, 4, 4]
    for frame in (runs.summary, runs.metrics, runs.layers):
        assert list(frame.columns[:3]) == ["name", "seed", "status"]
        assert set(frame["network.noise.rate"]) == {0.5}
        assert not set(frame.columns) & {"seeds", "network", "network.noise", "grid"}
    assert list(runs.summary.seed) == [0, 1]
    assert list(runs.summary.test_accuracy) == [90.0, 90.0]
    assert list(runs.metrics.test_loss) == [0.5, 0.25] * 2
    assert list(runs.layers.layer) == ["bn1", "bn2"] * 2
    assert runs.problems.empty
    assert repr(runs) == "<2 runs of 1 config, 0 problems>"


def test_numbers_have_the_dtypes_of_numbers(tmp_path: Path) -> None:
    small(tmp_path)
    small(tmp_path, seed=1, status="running", summary={})
    runs = load_runs(tmp_path)
    kinds = {key: runs.summary[key].dtype.kind for key in ("seed", "epochs", "test_accuracy")}
    assert kinds == {"seed": "i", "epochs": "i", "test_accuracy": "f"}
    assert runs.metrics.epoch.dtype.kind == "i"
    assert runs.layers.eval_variance.dtype.kind == "f"  # null everywhere
    assert runs.summary["network.widths"].iloc[0] == (8, 8)  # hashable, to group by
    assert runs.summary.groupby("network.widths").size().to_dict() == {(8, 8): 2}


def test_configs_of_several_kinds_share_the_tables(tmp_path: Path) -> None:
    make_run(tmp_path, "none", config=config_of("none"))
    small(tmp_path, "one")
    two = [dropout(0.1), {"kind": "gaussian", "sigma": 2.0}]
    make_run(tmp_path, "two", config=config_of("two", two))
    rows = load_runs(tmp_path).summary.set_index("name")
    assert rows["network.noise.rate"].dropna().to_dict() == {"one": 0.5}
    assert rows["network.noise.1.sigma"].dropna().to_dict() == {"two": 2.0}
    assert "network.noise" not in rows


def test_an_unfinished_run_is_in_the_tables_and_among_the_problems(tmp_path: Path) -> None:
    small(tmp_path)
    small(tmp_path, seed=1, status="interrupted")
    runs = load_runs(tmp_path)
    assert list(runs.summary.status) == ["done", "interrupted"]
    assert runs.summary.test_accuracy.isna().tolist() == [False, True]
    assert len(runs.metrics[runs.metrics.status == "interrupted"]) == 2
    assert runs.problems[["seed", "problem"]].to_numpy().tolist() == [
        [1, "not finished: interrupted"]
    ]


def test_a_damaged_run_is_in_the_tables_and_among_the_problems(tmp_path: Path) -> None:
    small(tmp_path)
    path = small(tmp_path, seed=1)
    (path / "config.yaml").write_text("{")
    (path / "summary.json").write_text("[1]")
    (path / "metrics.jsonl").write_text('nonsense\n{"epoch": 2}\n')
    (path / "layers.jsonl").write_text('{"epoch": 1, "name": "other", "seed": 7, "layer": "x"}\n')
    runs = load_runs(tmp_path)
    assert list(runs.summary.seed) == [0, 1]
    assert list(runs.layers.name) == ["a"] * 3
    assert list(runs.layers.seed) == [0, 0, 1]
    assert list(runs.metrics.seed) == [0, 0]
    problems = runs.problems[runs.problems.seed == 1].problem
    for file in ("config.yaml", "summary.json", "metrics.jsonl"):
        assert problems.str.contains(file).sum() == 1
    assert set(runs.problems.status) == {"done"}


def test_runs_without_rows_give_tables_with_every_column(tmp_path: Path) -> None:
    make_run(tmp_path, config=config_of())
    runs = load_runs(tmp_path)
    assert {"name", "network.name", *EPOCH_COLUMNS} <= set(runs.metrics)
    assert {"name", "network.name", *LAYER_COLUMNS} <= set(runs.layers)
    assert runs.metrics.empty
    assert runs.layers.empty


def test_the_layers_of_each_runs_last_epoch(tmp_path: Path) -> None:
    """Also where a run is behind, or of the same name in another folder."""
    for folder, epochs in (("one", [1, 2, 3]), ("two", [1]), ("none", [])):
        rows = [{"epoch": epoch, "layer": f"bn{i}"} for epoch in epochs for i in (1, 2)]
        make_run(tmp_path / folder, "a", 0, config=config_of("a"), layers=rows)
    final = load_runs(tmp_path).final_layers
    assert list(zip(final.epoch, final.layer, strict=True)) == [
        (3, "bn1"), (3, "bn2"), (1, "bn1"), (1, "bn2"),
    ]  # fmt: skip
    assert load_runs(tmp_path / "none").final_layers.empty


def test_an_empty_or_missing_folder_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs in"):
        load_runs(tmp_path)
    with pytest.raises(RunError, match="there is no folder"):
        load_runs(tmp_path / "missing")


def test_several_folders_and_one_run_twice(tmp_path: Path) -> None:
    small(tmp_path / "x", "a")
    small(tmp_path / "y", "b", accuracy=80.0)
    runs = load_runs(tmp_path / "x", str(tmp_path / "y"), tmp_path)
    assert list(runs.summary.name) == ["a", "b"]
    assert list(runs.summary.test_accuracy) == [90.0, summary_of(80.0)["test_accuracy"]]


def test_a_run_of_version_0_1_is_read(tmp_path: Path) -> None:
    """Its config has the keys of then, which are read by their names of now."""
    shutil.copytree(OLD, tmp_path / "old")
    runs = load_runs(tmp_path)
    assert runs.problems.empty
    row = runs.summary.iloc[0]
    summary = json.loads((OLD / "seed-0" / "summary.json").read_text())
    assert (row["name"], row.test_accuracy) == ("old", summary["test_accuracy"])
    assert (row["norm.eval_statistics"], row["recalibration.batch_weight"]) == ("running", 0.5)
    assert isinstance(runs.layers, pd.DataFrame)
    assert set(runs.layers.columns) >= set(LAYER_COLUMNS)
    assert len(runs.metrics) == 2
