"""Files that several processes write, and the lock that keeps them apart."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vshift.cache import cache_folder, keep, locked, remove_old, replacing


def test_the_folder_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSHIFT_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    keep(path, "old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep(tmp_path / "file" / "below", "text")


def test_a_lock_that_is_held_is_waited_for_and_given_up(tmp_path: Path) -> None:
    """Two descriptors of one process exclude each other as two processes do."""
    with locked(tmp_path):
        start = time.monotonic()
        with locked(tmp_path, seconds=0.1):
            assert 0.1 <= time.monotonic() - start < 5
    start = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - start < 5


def test_only_what_is_old_is_removed(tmp_path: Path) -> None:
    for name in ("a.tmp", "b.tmp", "c.txt"):
        (tmp_path / name).write_text("")
    for name in ("a.tmp", "c.txt"):
        os.utime(tmp_path / name, (1, 1))
    remove_old(tmp_path, "*.tmp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tmp", "c.txt"]
