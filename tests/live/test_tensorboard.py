"""TensorBoard's own reader finds what the run folder says, and training notices nothing."""

from __future__ import annotations

import builtins
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.factory import config_of, dropout, make_run, write_rows
from vshift.errors import RunError, VShiftError
from vshift.live.tensorboard import TensorBoardWriter
from vshift.live.watch import watch
from vshift.runs import find_runs

METRICS = [
    {"epoch": e, "test_accuracy": 40.0 + e, "train_loss": 2.0 / e, "learning_rate": 0.1}
    for e in (1, 2)
]
LAYERS = [
    {"epoch": e, "index": i, "layer": f"l{i}", "shift_ratio": e + i / 10 if e == 2 else None,
     "running_variance": float(e)}
    for e in (1, 2) for i in (0, 1)
]  # fmt: skip


def read_back(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_scalars_and_ratios_by_layer(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=METRICS, layers=LAYERS)
    watch([tmp_path], once=True, writer=TensorBoardWriter())
    found = read_back(run)
    assert found["accuracy/test"] == [(1, 41.0), (2, 42.0)]
    assert found["loss/train"] == [(1, 2.0), (2, 1.0)]
    assert found["shift_ratio/l1"] == [(2, pytest.approx(2.1))]
    assert found["running_variance/l0"] == [(1, 1.0), (2, 2.0)]
    assert "loss/test" not in found


def test_it_continues_and_writes_nothing_twice(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", metrics=METRICS[:1])
    writer = TensorBoardWriter()
    writer.update(find_runs([tmp_path]))
    writer.update(find_runs([tmp_path]))
    write_rows(run / "metrics.jsonl", METRICS)
    writer.update(find_runs([tmp_path]))
    writer.close()
    assert read_back(run)["accuracy/test"] == [(1, 41.0), (2, 42.0)]
    again = TensorBoardWriter()  # another day
    again.update(find_runs([tmp_path]))
    again.close()
    assert read_back(run)["accuracy/test"] == [(1, 41.0), (2, 42.0)]


def test_a_run_that_was_started_again_starts_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", metrics=METRICS)
    writer = TensorBoardWriter()
    writer.update(find_runs([tmp_path]))
    write_rows(run / "metrics.jsonl", [{**METRICS[0], "test_accuracy": 7.0}])
    writer.update(find_runs([tmp_path]))
    writer.close()
    assert read_back(run)["accuracy/test"] == [(1, 7.0)]


def test_the_runs_own_files_stay_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=METRICS, layers=LAYERS)

    def files() -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in run.iterdir() if p.is_file()}  # fmt: skip

    before = files()
    watch([tmp_path], once=True, writer=TensorBoardWriter())
    assert files() == before
    assert [record.path for record in find_runs([tmp_path])] == [run]


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(VShiftError, match=r"pip install 'vshift\[tensorboard\]'"):
        TensorBoardWriter()


@pytest.mark.parametrize("what", ["tensorboard", "run"])
def test_event_files_behind_a_link_are_not_deleted(tmp_path: Path, what: str) -> None:
    run = make_run(tmp_path / "runs", metrics=METRICS)
    elsewhere = tmp_path / "elsewhere"
    if what == "run":
        run.rename(elsewhere)
        run.symlink_to(elsewhere)
        events = elsewhere / "tensorboard"
    else:
        (run / "tensorboard").symlink_to(elsewhere)
        events = elsewhere
    events.mkdir()
    (events / "events.out.tfevents.1.mine").write_text("mine")
    with pytest.raises(RunError, match="leads through a link"):
        watch([tmp_path / "runs"], once=True, writer=TensorBoardWriter())
    assert [p.name for p in events.iterdir()] == ["events.out.tfevents.1.mine"]


def test_a_finished_run_has_its_config_and_final_scores(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    noisy = {**config_of(noise=dropout(0.5)), "notes": "try this"}
    runs = tmp_path / "runs"
    summary = {"epoch": 2, "test_error": 58.5, "test_accuracy": 41.5, "shift_ratio_mean": 1.5}
    make_run(runs, "a", config=config_of(), metrics=METRICS, summary=summary)
    make_run(runs, "b", 3, config=noisy, metrics=METRICS, summary=summary)
    make_run(runs, "c", status="running", metrics=METRICS)
    writer = TensorBoardWriter(tmp_path / "out" / "tb")
    writer.update(find_runs([runs]))
    writer.update(find_runs([runs]))
    writer.close()
    written = [path.parent for path in (tmp_path / "out" / "tb").rglob("events*")]
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in written) == [
        "tb/a/seed-0", "tb/b/seed-3", "tb/c/seed-0"
    ]  # fmt: skip
    assert not list(runs.glob("*/*/tensorboard"))
    found = {}
    for folder in written:
        events = EventAccumulator(str(folder))
        events.Reload()
        tags = events.Tags()["scalars"]
        if folder.parent.name == "c":
            assert not any(tag.startswith("final/") for tag in tags)
            continue
        assert {tag for tag in tags if tag.startswith("final/")} == {
            "final/test_error", "final/shift_ratio_mean"
        }  # fmt: skip
        assert [(e.step, e.value) for e in events.Scalars("final/test_error")] == [(2, 58.5)]
        parts = events.PluginTagToContent("hparams")
        start = metadata.parse_session_start_info_plugin_data(parts["_hparams_/session_start_info"])
        values = {k: v.number_value or v.string_value for k, v in start.hparams.items()}
        whole = metadata.parse_experiment_plugin_data(parts["_hparams_/experiment"])
        found[folder.parent.name] = values
        # Of all runs, as TensorBoard takes its columns from the first one.
        assert {"network.noise.rate", "seed"} <= {info.name for info in whole.hparam_infos}
    assert found["b"]["network.noise.rate"] == 0.5
    assert found["b"]["seed"] == 3
    assert found["b"]["name"] == "b"
    assert "network.noise.rate" not in found["a"]
    assert "notes" not in found["b"]


def test_two_runs_of_one_name_do_not_share_a_folder(tmp_path: Path) -> None:
    for study in ("one", "two"):
        make_run(tmp_path / study, "a", metrics=METRICS)
    with pytest.raises(VShiftError, match="would both be"):
        TensorBoardWriter(tmp_path / "out").update(find_runs([tmp_path]))


def test_a_folder_among_the_runs_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, metrics=METRICS)
    with pytest.raises(VShiftError, match="would be taken for runs"):
        watch([tmp_path], once=True, writer=TensorBoardWriter(tmp_path / "out"))
