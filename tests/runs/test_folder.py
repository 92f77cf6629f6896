"""The run folder's files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vshift.errors import RunError
from vshift.runs import FILES, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "a" / "seed-0")


def test_create_and_open(tmp_path: Path, folder: RunFolder) -> None:
    assert folder.path.is_dir()
    assert RunFolder.open(folder.path).status is None
    with pytest.raises(RunError, match="no such folder"):
        RunFolder.open(tmp_path / "none")


def test_a_file_where_the_runs_dir_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"cannot make the folder .*a file is where a folder"):
        RunFolder.create(tmp_path / "runs" / "a" / "seed-0")


def test_update_run_keeps_the_other_fields(folder: RunFolder) -> None:
    folder.write_run({"status": "running", "name": "a"})
    folder.update_run(device="cpu", seconds=np.float32(1.5))
    folder.mark_finished("done", images_per_second=float("nan"))
    assert folder.status == "done"
    assert folder.run["finished"].endswith("+00:00")
    assert folder.run["seconds"] == 1.5
    assert folder.run["images_per_second"] is None
    assert folder.run["name"] == "a"


def test_truncate_after_drops_later_rows_of_both_files(folder: RunFolder) -> None:
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "loss": np.float32(epoch)})
        folder.append_layers({"epoch": epoch, "index": index} for index in (0, 1))
    with open(folder.path / "layers.jsonl", "a") as file:
        file.write('{"epoch": 4, "ind')
    folder.truncate_after(2)
    assert [row["epoch"] for row in folder.metrics()] == [1, 2]
    assert [row["epoch"] for row in folder.layers()] == [1, 1, 2, 2]
    assert (folder.path / "layers.jsonl").read_text().endswith('"index": 1}\n')
    folder.truncate_after(0)
    assert folder.metrics() == []


def test_truncate_without_files_writes_none(folder: RunFolder) -> None:
    folder.truncate_after(0)
    assert list(folder.path.iterdir()) == []


def test_channels_round_trip_and_damage(folder: RunFolder) -> None:
    assert folder.read_channels() == {}
    vectors = {"bn1.train_variance": np.arange(6, dtype=np.float32)[::2], "bn1.mean": np.ones(2)}
    folder.write_channels(vectors)
    read = folder.read_channels()
    assert set(read) == set(vectors)
    for name, vector in vectors.items():
        np.testing.assert_array_equal(read[name], vector)
    (folder.path / "channels.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(RunError, match=r"channels\.safetensors is damaged"):
        folder.read_channels()


def test_checkpoint_round_trip(folder: RunFolder) -> None:
    import torch

    state = {"epoch": 3, "model": {"w": torch.ones(2)}, "random": random.Random(0).getstate()}
    folder.save_checkpoint(state)
    read = folder.load_checkpoint()
    assert read["epoch"] == 3
    assert torch.equal(read["model"]["w"], torch.ones(2))
    assert read["random"] == state["random"]


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "text", "list", "code"])
def test_a_damaged_checkpoint_says_what_to_do(folder: RunFolder, damage: str) -> None:
    import torch

    path = folder.path / "checkpoint.pt"
    folder.save_checkpoint({"w": torch.ones(1000)})
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "list":
        torch.save([1], path)
    else:
        torch.save({"a": Path("x")}, path)
    with pytest.raises(RunError, match=r"checkpoint\.pt.*--fresh"):
        folder.load_checkpoint()


def test_a_failed_checkpoint_keeps_the_old_one(folder: RunFolder) -> None:
    folder.save_checkpoint({"epoch": 1})
    with pytest.raises(Exception, match=r"pickle|local object"):
        folder.save_checkpoint({"epoch": lambda: 2})
    assert folder.load_checkpoint() == {"epoch": 1}


def test_clear_leaves_foreign_files_and_link_targets(tmp_path: Path, folder: RunFolder) -> None:
    for name in FILES:
        (folder.path / name).write_text("x")
    (folder.path / ".run.json.tmp").write_text("x")
    (folder.path / "notes.txt").write_text("mine")
    (tmp_path / "precious").write_text("mine")
    (folder.path / "summary.json").unlink()
    (folder.path / "summary.json").symlink_to(tmp_path / "precious")
    folder.clear()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "precious").read_text() == "mine"


def test_clear_does_not_delete_a_folder(folder: RunFolder) -> None:
    (folder.path / "summary.json").mkdir()
    with pytest.raises(RunError, match=r"cannot remove .*summary\.json"):
        folder.clear()


def test_summary_is_strict_json(folder: RunFolder) -> None:
    folder.write_summary({"test_accuracy": np.float64(91.25), "test_loss": float("inf")})
    text = (folder.path / "summary.json").read_text()
    assert json.loads(text) == {"test_accuracy": 91.25, "test_loss": None}


def test_importing_runs_and_compare_does_not_import_torch_or_pandas() -> None:
    script = (
        "import sys, vshift.runs; "
        "assert not {'torch', 'pandas', 'pydantic', 'numpy'} & set(sys.modules); "
        "import vshift.compare; "  # which reads configs, so it needs pydantic anyway
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


WRITER = """
import sys
import threading
import numpy as np
from vshift.runs import RunFolder
class Vector:
    def __init__(self, value): self.value = value
    def cpu(self): return self
    def numpy(self): return np.full(1000, self.value)
method = sys.argv[1]
for i in range(12):
    with RunFolder("run").writing():
        row = {"method": method, "number": i}
        RunFolder("run").write_recalibration([row], {method: {"v": Vector(i)}})
"""


def test_recalibrations_by_several_processes_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    methods = ["swap", "precise", "layerwise", "batch", "mix"]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, method], cwd=tmp_path) for method in methods
    ]
    folder = RunFolder(tmp_path / "run")
    while any(writer.poll() is None for writer in writers):
        rows, vectors = folder.read_recalibration()
        assert {row["method"] for row in rows} <= {name.split("/")[0] for name in vectors}
    assert [writer.returncode for writer in writers] == [0] * 5
    rows, vectors = folder.read_recalibration()
    assert {row["method"]: row["number"] for row in rows} == dict.fromkeys(methods, 11)
    assert {name: set(vector) for name, vector in vectors.items()} == {
        f"{method}/v": {11} for method in methods
    }
    assert {p.name for p in folder.path.iterdir()} == {
        "recalibration.json", "recalibration.safetensors",
    }  # fmt: skip


def test_writing_waits_for_another_process_for_so_long(tmp_path: Path) -> None:
    holding = (
        "import sys; from vshift.runs import RunFolder; RunFolder('.').lock()\n"
        "print('held', flush=True); sys.stdin.readline(); RunFolder('.').close()"
    )
    words = [sys.executable, "-c", holding]
    folder = RunFolder(tmp_path)
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        assert p.stdout is not None
        assert p.stdin is not None
        p.stdout.readline()
        with pytest.raises(RunError, match="another process is training in"), folder.writing(0.2):
            pass
        threading.Timer(0.3, p.stdin.close).start()
        with folder.writing():
            assert folder.is_held
    assert not folder.is_held
