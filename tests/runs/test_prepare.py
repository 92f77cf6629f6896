"""Begin, go on, or nothing: what `prepare` answers, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vshift.config import Config, config_hash, load
from vshift.errors import RunError
from vshift.runs import RunFolder, discard, git_commit, next_action, prepare, run_path


def config_of(name: str = "a", **changes: Any) -> Config:
    fields = {
        "name": name,
        "seeds": [0, 1],
        "data": {"name": "shapes"},
        "network": {"name": "mlp"},
        "epochs": 3,
    }
    return Config.model_validate({**fields, **changes})


def begun(runs_dir: Path, status: str = "running", checkpoint: bool = True) -> RunFolder:
    folder, action = prepare(runs_dir, config_of(), 0)
    assert action == "new"
    if checkpoint:
        folder.save_checkpoint({"epoch": 1})
    if status == "done":
        folder.write_summary({"test_accuracy": 1.0})
    folder.update_run(status=status)
    folder.close()
    return folder


def test_a_new_run(tmp_path: Path) -> None:
    folder, action = prepare(tmp_path, config_of(), 1)
    assert (action, folder.path) == ("new", tmp_path / "a" / "seed-1")
    assert folder.path == run_path(tmp_path, "a", 1)
    run = folder.run
    assert {key: run[key] for key in ("status", "name", "seed", "data", "finished")} == {
        "status": "running",
        "name": "a",
        "seed": 1,
        "data": "shapes",
        "finished": None,
    }
    assert run["config_hash"] == config_hash(config_of())
    assert all(run[key] for key in ("started", "python", "torch", "torchvision", "vshift"))
    saved = load(folder.path / "config.yaml")
    assert saved.seeds == [1]
    assert saved.model_copy(update={"seeds": [0, 1]}) == config_of()


def test_a_grid_does_not_belong_to_one_run(tmp_path: Path) -> None:
    folder, _ = prepare(tmp_path, config_of(grid={"epochs": [3, 4]}), 0)
    assert load(folder.path / "config.yaml").grid is None
    folder.save_checkpoint({})
    assert next_action(folder, config_of()) == "resume"


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_unfinished_runs_go_on(tmp_path: Path, status: str) -> None:
    begun(tmp_path, status)
    folder, action = prepare(tmp_path, config_of(), 0)
    assert action == "resume"
    assert folder.status == "running"
    assert folder.run["resumes"] == 1
    assert folder.load_checkpoint() == {"epoch": 1}


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    folder = begun(tmp_path, checkpoint=False)
    folder.append_metrics({"epoch": 1})
    folder, action = prepare(tmp_path, config_of(), 0)
    assert action == "new"
    assert folder.metrics() == []


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_finished_runs_are_left_alone(tmp_path: Path, status: str) -> None:
    folder = begun(tmp_path, status)
    before = {path.name: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    assert prepare(tmp_path, config_of(seeds=[0, 1, 2]), 0)[1] == status
    assert {path.name: path.stat().st_mtime_ns for path in folder.path.iterdir()} == before


def test_done_without_a_summary_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    folder = begun(tmp_path, "done")
    (folder.path / "summary.json").write_text("{")
    assert next_action(folder, config_of()) == "resume"


def test_fresh_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(tmp_path, "done")
    (folder.path / "notes.txt").write_text("mine")
    folder, action = prepare(tmp_path, config_of(epochs=5), 0, fresh=True)
    assert action == "new"
    folder.close()
    assert {p.name for p in folder.path.iterdir()} == {"config.yaml", "run.json", "notes.txt"}
    assert load(folder.path / "config.yaml").epochs == 5


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("what", ["name", "seed", "plain folder", "nothing"])
def test_nothing_behind_a_link_is_changed(tmp_path: Path, what: str, fresh: bool) -> None:
    """Not the same config's unfinished run either, which would be resumed there."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    folder = begun(elsewhere).path
    link = runs / "a" / "seed-0"
    link.parent.mkdir(parents=True)
    if what == "name":
        link.parent.rmdir()
        link.parent.symlink_to(folder.parent)
    elif what == "seed":
        link.symlink_to(folder)
    elif what == "plain folder":
        (folder / "run.json").unlink()
        (folder / "config.yaml").unlink()
        link.symlink_to(folder)
    else:
        link.symlink_to(elsewhere / "later")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=r"leads through a link to .*elsewhere"):
        prepare(runs, config_of(), 0, fresh)
    if what != "nothing":
        with pytest.raises(RunError, match=r"leads through a link to .*elsewhere"):
            discard(runs, "a", 0)
    assert snapshot(tmp_path) == before
    assert not (elsewhere / "later").exists()


def test_an_alias_replaces_no_other_configs_run(tmp_path: Path) -> None:
    begun(tmp_path, "done")
    (tmp_path / "b").symlink_to("a")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match="leads through a link"):
        prepare(tmp_path, config_of("b"), 0, fresh=True)
    assert snapshot(tmp_path) == before


def test_a_runs_dir_may_be_a_link(tmp_path: Path) -> None:
    begun(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folder, action = prepare(tmp_path / "link", config_of(), 0)
    folder.close()
    assert action == "resume"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, fresh: bool) -> None:
    """A kill never leaves a run without both files: they are removed last."""
    folder = tmp_path / "a" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_text("mine")
    (folder / "metrics.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"is no run: .* checkpoint\.pt, metrics\.jsonl, which"):
        prepare(tmp_path, config_of(), 0, fresh)
    with pytest.raises(RunError, match="is no run"):
        next_action(RunFolder(folder), config_of())
    with pytest.raises(RunError, match="is no run"):
        discard(tmp_path, "a", 0)
    assert snapshot(folder) == {"checkpoint.pt": b"mine", "metrics.jsonl": b"mine"}


def test_a_runs_dir_of_too_long_a_name_is_an_error_for_people(tmp_path: Path) -> None:
    folder = RunFolder(run_path(tmp_path / ("x" * 300), "a", 0))
    with pytest.raises(RunError, match="File name too long; choose a shorter name"):
        next_action(folder, config_of())


@pytest.mark.parametrize("status", ["done", "running", "diverged"])
def test_another_config_is_refused_by_key(tmp_path: Path, status: str) -> None:
    begun(tmp_path, status)
    other = config_of(epochs=9, norm={"kind": "batch", "momentum": 0.5})
    with pytest.raises(RunError) as caught:
        prepare(tmp_path, other, 0)
    message = str(caught.value)
    assert "these keys differ" in message
    assert "epochs: 3 there, 9 now" in message
    assert "norm.momentum: 0.1 there, 0.5 now" in message
    for remedy in ("--set name=", "--runs-dir", "--fresh"):
        assert remedy in message


def test_the_same_config_under_another_seed_is_another_folder(tmp_path: Path) -> None:
    begun(tmp_path, "done")
    assert prepare(tmp_path, config_of(), 1)[1] == "new"


def test_damaged_run_files_say_fresh(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder.path / "config.yaml").write_bytes(b"\xff: [")
    with pytest.raises(RunError, match=r"config\.yaml cannot be read; .*--fresh"):
        prepare(tmp_path, config_of(), 0)
    (folder.path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged.*--fresh"):
        prepare(tmp_path, config_of(), 0)
    assert prepare(tmp_path, config_of(), 0, fresh=True)[1] == "new"


def test_a_missing_config_is_known_by_its_hash(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder.path / "config.yaml").unlink()
    assert next_action(folder, config_of()) == "resume"
    with pytest.raises(RunError, match="another config's run"):
        next_action(folder, config_of(epochs=4))


def test_look_writes_nothing(tmp_path: Path) -> None:
    assert next_action(RunFolder(tmp_path / "none" / "seed-0"), config_of()) == "new"
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    script = (
        "import sys; from pathlib import Path; from vshift.runs import RunFolder\n"
        f"RunFolder({str(folder.path)!r}).lock(); print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is training in"):
            prepare(tmp_path, config_of(), 0)
        other.kill()
    assert prepare(tmp_path, config_of(), 0)[1] == "resume"
    assert prepare(tmp_path, config_of(), 0)[1] == "resume"  # this process again


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], check=True)
    assert len(git_commit() or "") == 40
    monkeypatch.setenv("PATH", os.devnull)
    assert git_commit() is None


def test_run_json_is_readable_by_people(tmp_path: Path) -> None:
    folder, _ = prepare(tmp_path, config_of(), 0)
    text = (folder.path / "run.json").read_text()
    assert text.startswith('{\n  "status": "running",\n')


def test_a_run_of_a_version_with_other_keys_is_resumed(tmp_path: Path) -> None:
    """Its config.yaml says `rise` and `cumulative`, which have other names now."""
    config = config_of(
        schedule={"name": "onecycle", "pct_start": 0.2}, norm={"kind": "batch", "momentum": None}
    )
    folder, _ = prepare(tmp_path, config, 0)
    folder.save_checkpoint({"epoch": 1})
    folder.close()
    saved = folder.path / "config.yaml"
    old = saved.read_text().replace("pct_start: 0.2", "rise: 0.2")
    old = old.replace("  momentum: null", "  cumulative: true\n  momentum: 0.1")
    assert "rise" in old
    assert "cumulative" in old
    saved.write_text(old)
    assert next_action(folder, config) == "resume"
    folder, action = prepare(tmp_path, load(saved), 0)
    assert action == "resume"
    folder.close()


def test_a_run_of_version_0_1_is_done_and_has_the_same_hash(tmp_path: Path) -> None:
    """Its config is read by the names that its keys have now."""
    path = shutil.copytree(
        Path(__file__).parent / "old_run" / "seed-0", tmp_path / "old" / "seed-0"
    )
    config = load(path / "config.yaml")
    folder, action = prepare(tmp_path, config, 0)
    assert action == "done"
    assert folder.run["config_hash"] == config_hash(config)
    changed = config.model_copy(update={"epochs": 3})
    with pytest.raises(RunError, match=r"(?s)this key differs:\s+epochs: 2 there, 3 now"):
        prepare(tmp_path, changed, 0)
