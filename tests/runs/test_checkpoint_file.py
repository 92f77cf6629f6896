"""Checkpoints on disk: the last ones kept, damage noticed, nothing in them run."""

from __future__ import annotations

import errno
import io
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

from vshift.errors import Damaged, RunError
from vshift.runs import checkpoint_file, files
from vshift.runs.checkpoint_file import NAMES, existing, load, promote, save


def state(epoch: int) -> dict[str, object]:
    return {"version": 2, "epoch": epoch, "model": {"w": torch.full((50,), float(epoch))}}


def epochs(folder: Path) -> list[int]:
    return [load(path)["epoch"] for path in existing(folder)]


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_ones_are_kept(tmp_path: Path, keep: int) -> None:
    for epoch in range(6):
        save(tmp_path, state(epoch), keep)
    assert epochs(tmp_path) == [5, 4, 3, 2][:keep]
    assert listing(tmp_path) == set(NAMES[:keep])


def test_keeping_fewer_removes_the_others(tmp_path: Path) -> None:
    for epoch in range(4):
        save(tmp_path, state(epoch), 4)
    save(tmp_path, state(4), 2)
    assert epochs(tmp_path) == [4, 3]


def test_torch_reads_it_as_any_other_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, state(3))
    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert read["epoch"] == 3
    assert torch.equal(read["model"]["w"], torch.full((50,), 3.0))
    with zipfile.ZipFile(tmp_path / "checkpoint.pt") as archive:
        assert archive.comment.startswith(b"vshift sha256 ")


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    chance = random.Random(0)
    places = [*chance.sample(range(len(whole)), 150), *range(len(whole) - 100, len(whole))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=r"checkpoint\.pt.*--fresh"):
            load(path)
    for length in chance.sample(range(len(whole)), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            load(path)


def test_the_first_versions_checkpoints_can_be_read(tmp_path: Path) -> None:
    torch.save({"version": 1, "epoch": 2}, tmp_path / "checkpoint.pt")
    assert load(tmp_path / "checkpoint.pt")["epoch"] == 2
    torch.save({"version": 2, "epoch": 2}, tmp_path / "checkpoint.pt")
    with pytest.raises(Damaged, match="checksum is missing"):
        load(tmp_path / "checkpoint.pt")


class Crafted:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_crafted_checkpoint_runs_nothing(tmp_path: Path, with_checksum: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"version": 1, "epoch": Crafted(tmp_path / "made")}, buffer)
    data = bytearray(buffer.getvalue())
    (tmp_path / "checkpoint.pt").write_bytes(
        checkpoint_file.sealed(data) if with_checksum else data
    )
    with pytest.raises(Damaged, match=r"holds more than tensors and numbers: \S*open"):
        load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "made").exists()


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    (tmp_path / "checkpoint.pt").write_bytes(buffer.getvalue())
    with pytest.raises(Damaged, match="unpack to 10,000,000"):
        load(tmp_path / "checkpoint.pt")


def test_a_huge_file_that_is_no_archive_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "checkpoint.pt", "wb") as file:
        file.truncate(2**40)  # a hole: takes no room on disk, and all memory if it is read
    with pytest.raises(Damaged, match="does not begin with"):
        load(tmp_path / "checkpoint.pt")


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    for epoch in range(3):
        save(tmp_path, state(epoch))
    assert epochs(tmp_path) == [2, 1]


def test_a_kill_in_the_middle_of_replacing_leaves_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the older one was replaced, before the newest one is: both names mean the old one."""

    class Killed(BaseException):
        pass

    for epoch in range(2):
        save(tmp_path, state(epoch))
    replace, calls = os.replace, []

    def killed(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        save(tmp_path, state(2))
    monkeypatch.undo()
    assert epochs(tmp_path) == [1, 1]
    save(tmp_path, state(3))
    assert epochs(tmp_path) == [3, 1]
    assert listing(tmp_path) == set(NAMES[:2])


def test_promoting_removes_what_was_newer(tmp_path: Path) -> None:
    for epoch in range(3):
        save(tmp_path, state(epoch), 3)
    promote(tmp_path, tmp_path / NAMES[2])
    assert epochs(tmp_path) == [0]
    assert listing(tmp_path) == {"checkpoint.pt"}


def test_a_failed_write_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in range(2):
        save(tmp_path, state(epoch))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match="free some space"):
        save(tmp_path, state(2))
    monkeypatch.undo()
    assert epochs(tmp_path) == [1, 0]
    assert listing(tmp_path) == set(NAMES[:2])
