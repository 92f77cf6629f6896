"""Who may train in a folder: one process, until it lets go or is gone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vshift.errors import RunError, RunLost
from vshift.runs import lock
from vshift.runs.lock import OWNER, SILENCE, Owner

HOLD = (
    "import sys, time; from pathlib import Path; from vshift.runs import lock\n"
    "lock.lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    lock.release(tmp_path)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its stdin ends."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    return other


def write_owner(folder: Path, owner: Owner, age: float = 0.0) -> None:
    (folder / OWNER).write_text(json.dumps(asdict(owner)))
    os.utime(folder / OWNER, (time.time() - age,) * 2)


def test_the_owner_is_named_and_the_second_process_refused(folder: Path) -> None:
    with holder(folder) as other:
        with pytest.raises(RunError) as caught:
            lock.lock(folder)
        host = Owner.me().host
        assert f"another process is training in {folder}: pid {other.pid} on {host}" in str(
            caught.value
        )
        assert f"kill {other.pid}" in str(caught.value)
        assert "--runs-dir" in str(caught.value)
        other.communicate()
    lock.lock(folder)


def test_a_killed_process_holds_nothing(folder: Path) -> None:
    other = holder(folder)
    other.kill()
    other.communicate()
    assert (folder / OWNER).exists()
    lock.lock(folder)
    assert Owner.read((folder / OWNER).read_bytes()) == Owner.me()
    lock.release(folder)
    assert list(folder.iterdir()) == []


def test_a_killed_process_that_nobody_waited_for_holds_nothing(folder: Path) -> None:
    other = holder(folder)
    other.kill()
    deadline = time.monotonic() + 10
    while "Z" not in Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.lock(folder)
    other.communicate()


def test_a_later_process_of_the_same_number_is_not_the_owner(folder: Path) -> None:
    mine = Owner.me()
    assert mine.began
    write_owner(folder, replace(mine, pid=os.getppid(), began=1))
    lock.lock(folder)


def test_an_owner_elsewhere_is_gone_after_silence(folder: Path) -> None:
    elsewhere = Owner("node7", "another boot", 4711, 1)
    write_owner(folder, elsewhere, age=SILENCE / 2)
    with pytest.raises(RunError, match=r"pid 4711 on node7, last sign .* 10 minutes of silence"):
        lock.lock(folder)
    assert Owner.read((folder / OWNER).read_bytes()) == elsewhere
    write_owner(folder, elsewhere, age=SILENCE + 5)
    lock.lock(folder)
    assert Owner.read((folder / OWNER).read_bytes()) == Owner.me()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', "{" * 9000, "\0" * 9])
def test_a_damaged_owner_file_is_respected_until_it_is_old(folder: Path, content: str) -> None:
    (folder / OWNER).write_text(content)
    with pytest.raises(RunError, match=r"training in .*: unknown, last sign of life"):
        lock.lock(folder)
    old = time.time() - SILENCE - 5
    os.utime(folder / OWNER, (old, old))
    lock.lock(folder)


def test_a_hostile_owner_file_cannot_write_to_the_terminal(folder: Path) -> None:
    write_owner(folder, Owner("\x1b[31mred", "elsewhere", 1, 1))
    with pytest.raises(RunError) as caught:
        lock.lock(folder)
    assert "\x1b" not in str(caught.value)


def test_signs_of_life_are_given_and_rare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.lock(folder)
    os.utime(folder / OWNER, (1, 1))
    lock.pulse(folder)
    assert (folder / OWNER).stat().st_mtime == 1
    monkeypatch.setattr(lock, "PULSE", 0.0)
    lock.pulse(folder)
    assert (folder / OWNER).stat().st_mtime == pytest.approx(time.time(), abs=60)


def test_an_owner_that_was_taken_for_gone_stops(folder: Path) -> None:
    lock.lock(folder)
    write_owner(folder, Owner("node7", "elsewhere", 4711, 1))
    with pytest.raises(RunLost, match="taken over by pid 4711 on node7"):
        lock.pulse(folder, at_once=True)
    lock.release(folder)
    assert (folder / OWNER).exists()  # it is the other one's


def test_a_removed_owner_file_is_made_again(folder: Path) -> None:
    lock.lock(folder)
    (folder / OWNER).unlink()
    lock.pulse(folder, at_once=True)
    assert (folder / OWNER).exists()


def test_a_deleted_folder_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lock.lock(folder)
    (folder / OWNER).unlink()
    folder.rmdir()
    with pytest.raises(RunLost, match="deleted or moved"):
        lock.pulse(folder, at_once=True)
    lock.release(folder)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with holder(folder) as other:
        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(RunError, match=f"pid {other.pid} on"):
            lock.lock(folder)
        other.communicate()
    lock.lock(folder)
    assert [p.name for p in folder.iterdir()] == [OWNER]


def test_of_many_processes_one_takes_over(folder: Path) -> None:
    """All start with the file of a process that is gone before them."""
    write_owner(folder, replace(Owner.me(), pid=2**22 + 1, began=1))
    script = (
        "import sys, time; from pathlib import Path; from vshift.runs import lock\n"
        "try: lock.lock(Path(sys.argv[1]))\n"
        "except Exception as error: print('refused', flush=True)\n"
        "else: print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    answers = [other.stdout.readline().strip() for other in others if other.stdout]
    for other in others:
        other.communicate()
    assert sorted(answers) == ["held", *["refused"] * 5]
