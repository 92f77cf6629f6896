"""Disks that are full, read-only, forbidden or gone, for real: one error, earlier files whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.soak.harness import Trainer, differences, environment

CONFIG = """
data: {name: shapes, train: 100, test: 20, batch_size: 20}
network: {name: mlp, widths: [32, 32], noise: {kind: dropout, rate: 0.5, position: before_bn}}
epochs: 4
measure: {eval_batches: 2}
hardware: {device: cpu, precision: float32, threads: 1}
"""
LONG = CONFIG.replace("epochs: 4", "epochs: 20000").replace("{eval_batches: 2}", "{every: 0}")
NOBODY = 65534
is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="only root may mount and change users")


def trained(trainer: Trainer, config: Path, runs: Path, **limits: int) -> tuple[int, str]:
    """Exit code and messages of `vshift train`."""
    log = config.with_name("messages")
    log.write_text("")
    log.chmod(0o666)
    trainer.start(["train", str(config), "--runs-dir", str(runs)], log, **limits)
    return trainer.wait(), log.read_text()


def write(tmp_path: Path, text: str = CONFIG) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def complaint(messages: str) -> str:
    """The one error in the messages."""
    assert "Traceback" not in messages
    assert messages.count("error: ") == 1, messages
    return messages[messages.index("error: ") :]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory; skips where the system forbids mounting."""
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"CI must be able to mount: {done.stderr}")
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@needs_root
def test_a_full_disk_and_going_on_when_there_is_room(trainer, tmp_path):
    """Its own small file system, filled but for room for one and a half checkpoints."""
    config, disk = write(tmp_path), tmp_path / "disk"
    assert trained(trainer, config, tmp_path / "whole")[0] == 0
    whole = tmp_path / "whole" / "small" / "seed-0"
    room = int(1.5 * (whole / "checkpoint.pt").stat().st_size)
    with mounted(disk, "size=16m"):
        (disk / "ballast").write_bytes(b"\0" * (2**24 - room - 2**17))
        code, messages = trained(trainer, config, disk)
        assert code == 1
        assert "No space left on device; free some space and start the same" in complaint(messages)
        folder = disk / "small" / "seed-0"
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] >= 1
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        assert list(folder.glob(".*.tmp")) == []
        (disk / "ballast").unlink()
        assert trained(trainer, config, disk)[0] == 0
        assert differences(whole, folder) == []


@needs_root
def test_a_disk_that_is_full_from_the_start(trainer, tmp_path):
    config, disk = write(tmp_path), tmp_path / "disk"
    with mounted(disk, "size=1m"):
        with pytest.raises(OSError, match="No space"):
            (disk / "ballast").write_bytes(b"\0" * 2**21)
        code, messages = trained(trainer, config, disk)
        assert code in (1, 2)
        assert "No space left on device" in complaint(messages)


@needs_root
def test_a_read_only_file_system(trainer, tmp_path):
    config, disk = write(tmp_path), tmp_path / "disk"
    with mounted(disk, "size=16m"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, messages = trained(trainer, config, disk)
        assert code == 2
        assert "Read-only file system; choose another --runs-dir" in complaint(messages)


@needs_root
def test_a_file_system_that_becomes_read_only_under_the_run(trainer, tmp_path):
    config, disk = write(tmp_path, LONG), tmp_path / "disk"
    log = tmp_path / "messages"
    with mounted(disk, "size=64m"):
        trainer.start(["train", str(config), "--runs-dir", str(disk)], log)
        folder = disk / "small" / "seed-0"
        wait_for((folder / "checkpoint-previous.pt").exists)
        # Refused while a file is open for writing, which is most of the time: ask again.
        while subprocess.run(
            ["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False
        ).returncode:
            time.sleep(0.001)
        assert trainer.wait() == 1
        assert "Read-only file system" in complaint(log.read_text())
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] >= 1


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_limit_on_the_size_of_files(trainer, tmp_path):
    """The write itself fails, part of the way through, without a mount and without root."""
    config = write(tmp_path)
    code, messages = trained(trainer, config, tmp_path / "runs", largest_file=100_000)
    assert code == 1
    assert "checkpoint.pt: File too large; the system limits" in complaint(messages)
    folder = tmp_path / "runs" / "small" / "seed-0"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not (folder / ".checkpoint.pt.tmp").exists()
    assert trained(trainer, config, tmp_path / "runs")[0] == 0


@pytest.mark.parametrize("what", ["run", "runs"])
def test_a_folder_deleted_under_the_run(trainer, tmp_path, what):
    config, runs, log = write(tmp_path, LONG), tmp_path / "runs", tmp_path / "messages"
    trainer.start(["train", str(config), "--runs-dir", str(runs)], log)
    folder = runs / "small" / "seed-0"
    wait_for((folder / "checkpoint.pt").exists)
    remove(folder if what == "run" else runs)
    assert trainer.wait() == 1
    assert "the folder was deleted or moved; start the same" in complaint(log.read_text())
    assert not folder.exists()
    assert trained(trainer, write(tmp_path), runs)[0] == 0


def remove(folder: Path) -> None:
    """Again and again, as the run may just be making a file."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def for_everybody() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="vshift-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@needs_root
def test_permission_lost_under_the_run(trainer):
    with for_everybody() as place:
        eager = LONG.replace("threads: 1", "threads: 1, step: eager")  # no kernels for nobody
        config, runs, log = write(place, eager), place / "runs", place / "messages"
        log.write_text("")
        log.chmod(0o666)
        trainer.start(["train", str(config), "--runs-dir", str(runs)], log, uid=NOBODY)
        folder = runs / "small" / "seed-0"
        wait_for((folder / "checkpoint-previous.pt").exists)
        folder.chmod(0o555)
        assert trainer.wait() == 1
        text = complaint(log.read_text())
        assert "Permission denied; give yourself permission" in text
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] >= 1
        folder.chmod(0o777)


@needs_root
def test_a_folder_of_somebody_else(trainer):
    with for_everybody() as place:
        config = write(place)
        (place / "runs").mkdir(mode=0o755)
        code, messages = trained(trainer, config, place / "runs", uid=NOBODY)
        assert code == 2
        assert "Permission denied; give yourself permission" in complaint(messages)


@needs_root
def test_a_finished_run_that_may_only_be_read_is_still_known_to_be_done(trainer):
    with for_everybody() as place:
        config = write(place)
        assert trained(trainer, config, place / "runs")[0] == 0
        code, messages = trained(trainer, config, place / "runs", uid=NOBODY)
        assert code == 0, messages
        assert "is done" in messages


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_into_a_full_disk(tmp_path):
    """Of a table: an error. Of messages: training does not need them."""
    schema = [sys.executable, "-m", "vshift", "schema"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            schema, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_messages_into_a_full_disk_do_not_end_a_run(trainer, tmp_path):
    config = write(tmp_path)
    words = ["train", str(config), "--runs-dir", str(tmp_path / "runs")]
    trainer.start(words, Path("/dev/full"))
    assert trainer.wait() == 0
    assert (tmp_path / "runs" / "small" / "seed-0" / "summary.json").exists()
