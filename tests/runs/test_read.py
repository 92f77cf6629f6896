"""Finding runs, and reading damaged ones without an exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factory import config_of, make_run
from vshift.errors import RunError
from vshift.runs import find_runs, read_run


def test_runs_are_found_from_every_level_and_sorted_naturally(tmp_path: Path) -> None:
    for name, seed in (("depth-20", 0), ("depth-9", 10), ("depth-9", 2)):
        make_run(tmp_path / "runs", name, seed)
    everything = [("depth-9", 2), ("depth-9", 10), ("depth-20", 0)]
    runs = tmp_path / "runs"
    assert [(r.name, r.seed) for r in find_runs([runs])] == everything
    assert [(r.name, r.seed) for r in find_runs([tmp_path])] == everything
    assert [(r.name, r.seed) for r in find_runs([runs / "depth-9"])] == everything[:2]
    assert [r.seed for r in find_runs([runs / "depth-9" / "seed-2"])] == [2]
    assert len(find_runs([runs, runs / "depth-9", tmp_path])) == 3


def test_a_single_run_from_inside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path, "a", 3))
    assert [(r.name, r.seed) for r in find_runs(["."])] == [("a", 3)]


def test_a_missing_folder_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "runs-final").mkdir()
    with pytest.raises(RunError, match=r"no folder .*runs-finl; did you mean `runs-final`"):
        find_runs([tmp_path / "runs-finl"])
    with pytest.raises(RunError, match="no folder"):
        find_runs([tmp_path / "no" / "where"])


def test_a_file_and_a_folder_without_runs(tmp_path: Path) -> None:
    path = make_run(tmp_path / "runs") / "run.json"
    with pytest.raises(RunError, match=r"run\.json is a file; name the folder"):
        find_runs([path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no runs in .*<name>/seed-<n>/.*run\.json"):
        find_runs([tmp_path / "empty"])


def test_links_in_circles_end(tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
    assert len(find_runs([tmp_path / "runs"])) == 1


@pytest.mark.timeout(20)
def test_many_links_to_folders_above_are_looked_into_once(tmp_path: Path) -> None:
    """Followed, forty of them would be 2.7 million folders."""
    run = make_run(tmp_path / "runs" / "study")
    for i in range(40):
        (tmp_path / "runs" / f"l{i}").symlink_to(".")
        (run.parent / f"l{i}").symlink_to(tmp_path)
    assert [r.path for r in find_runs([tmp_path / "runs"])] == [run]


def test_a_link_to_a_runs_dir_elsewhere_is_followed(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "more").symlink_to(tmp_path / "elsewhere")
    (record,) = find_runs([tmp_path / "runs"])
    assert record.path == tmp_path / "runs" / "more" / "a" / "seed-0"


def test_a_whole_run(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path, metrics=[{"epoch": 1}], layers=[{"epoch": 1}]))
    assert record.status == "done"
    assert record.problems == []
    assert record.config["data"] == {"name": "shapes"}
    assert record.metrics == [{"epoch": 1}]
    assert record.layers == [{"epoch": 1}]
    assert record.summary["test_accuracy"] == 90.0


def test_small_numbers_of_a_config_are_numbers(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    (path / "config.yaml").write_text("optimizer: {weight_decay: 1.0e-05}\n")
    assert read_run(path).config == {"optimizer": {"weight_decay": 1e-5}}


def test_every_kind_of_damage_is_a_sentence(tmp_path: Path) -> None:
    path = make_run(tmp_path, "b", 4)
    (path / "run.json").write_bytes(b"\xff\xfe{")
    (path / "summary.json").write_text("[1, 2]")
    (path / "config.yaml").write_text("a: [1,\nb: }")
    (path / "metrics.jsonl").write_text("x\n{}\n")
    record = read_run(path)
    assert (record.name, record.seed, record.status) == ("b", 4, "damaged")
    assert record.config == {}
    assert record.metrics == []
    for name in ("run.json", "summary.json", "config.yaml", "metrics.jsonl:1"):
        assert any(name in problem for problem in record.problems)


def test_wrong_types_in_run_json(tmp_path: Path) -> None:
    path = make_run(tmp_path, "b", 4)
    (path / "run.json").write_text('{"status": ["x"], "name": 3, "seed": true}')
    record = read_run(path)
    assert (record.name, record.seed, record.status) == ("b", 4, "damaged")
    assert len(record.problems) == 3


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "c" / "seed-1").mkdir(parents=True)
    record = read_run(tmp_path / "c" / "seed-1")
    assert (record.name, record.seed, record.status) == ("c", 1, "damaged")
    assert "run.json is missing" in record.problems[0]
    done = make_run(tmp_path, "d", config=config_of("d"))
    (done / "summary.json").unlink()
    assert "summary.json is missing" in read_run(done).problems[0]


def test_a_runs_config_is_read_by_yaml_1_2(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    (path / "config.yaml").write_text("a: 1e-3\nb: no\nc: 012\nd: 0o17\n")
    assert read_run(path).config == {"a": 1e-3, "b": "no", "c": 12, "d": 15}
    (path / "config.yaml").write_text("a: 1\na: 2\n")
    record = read_run(path)
    assert record.config == {}
    assert "config.yaml is damaged: config.yaml:2:1: duplicate key `a`" in "".join(record.problems)
    (path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert read_run(path).config == {}


def test_a_config_of_an_earlier_version_has_todays_keys(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a")
    (path / "config.yaml").write_text("norm: {kind: batch, cumulative: true, momentum: 0.1}\n")
    assert read_run(path).config == {"norm": {"kind": "batch", "momentum": None}}
