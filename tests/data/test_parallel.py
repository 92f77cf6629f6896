"""Several processes that all need a data set, or its cache, for the first time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vshift.data import cache
from vshift.data.cifar import UNPACKED, fetch
from vshift.errors import DataError

# What takes the network's place writes who downloads, takes its time, and leaves a whole folder.
FETCH = """
import os, sys, time
from pathlib import Path
from vshift.data import cifar
root = Path(sys.argv[1])
def download(name, archive, into):
    with open(root.parent / "downloads", "a") as file:
        file.write(f"{os.getpid()}\\n")
    (into / cifar.UNPACKED[name]).mkdir()
    time.sleep(1)
    for part in ("a", "b"):
        (into / cifar.UNPACKED[name] / part).write_text(part)
cifar._unpack_or_download = download
if sys.argv[2:]:  # as on two machines whose disk has no locks
    cifar.cache.alone = __import__("contextlib").nullcontext
found = cifar.fetch("cifar10", str(root)) / cifar.UNPACKED["cifar10"]
print(sorted(path.name for path in found.iterdir()))
"""


def together(script: str, count: int, *words: str) -> list[str]:
    """The outputs of so many processes that run side by side."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *words], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
        )
        for _ in range(count)
    ]  # fmt: skip
    return [process.communicate(timeout=120)[0] for process in processes]


@pytest.mark.parametrize("locks", [True, False])
def test_parallel_first_downloads(tmp_path: Path, locks: bool) -> None:
    root = tmp_path / "new" / "cifar"
    root.parent.mkdir()
    answers = together(FETCH, 3, str(root), *([] if locks else ["none"]))
    assert answers == ["['a', 'b']\n"] * 3
    assert len((root.parent / "downloads").read_text().split()) == (1 if locks else 3)
    assert [path.name for path in root.iterdir()] == [UNPACKED["cifar10"]]


CACHE = """
import sys
from pathlib import Path
import numpy as np
from vshift.data import cache
path = Path(sys.argv[1])
images = np.arange(3 * 64 * 64 * 400, dtype=np.uint8).reshape(400, 64, 64, 3)
for _ in range(10):
    found = cache.read_images(path)
    assert found is None or np.array_equal(found, images)
    cache.write_images(path, images)
    assert np.array_equal(cache.read_images(path), images)
print("good")
"""


def test_parallel_first_cache_builds(tmp_path: Path) -> None:
    file = tmp_path / "new" / "images" / "key.safetensors"
    assert together(CACHE, 3, str(file)) == ["good\n"] * 3
    assert [path.name for path in file.parent.iterdir()] == ["key.safetensors"]


def test_a_failed_fetch_leaves_no_empty_folders(
    tmp_path: Path, own_cache: Path, monkeypatch
) -> None:
    def fail(name: str, archive: Path, into: Path) -> None:
        (into / "half").write_bytes(b"half")
        raise DataError("no network")

    monkeypatch.setattr("vshift.data.cifar._unpack_or_download", fail)
    with pytest.raises(DataError, match="no network"):
        fetch("cifar10")
    assert not own_cache.exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="no network"):
        fetch("cifar10", str(tmp_path / "mine" / "deep" / "cifar"))
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(DataError, match="no network"):
        fetch("cifar10", str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_a_folder_that_cannot_take_the_set_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """Not taken for another process that was quicker."""

    def download(name: str, archive: Path, into: Path) -> None:
        (into / UNPACKED[name]).mkdir()

    monkeypatch.setattr("vshift.data.cifar._unpack_or_download", download)
    (tmp_path / UNPACKED["cifar10"]).write_text("a file")
    with pytest.raises(DataError, match=r"cannot write to"):
        fetch("cifar10", str(tmp_path))


def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path: Path, monkeypatch) -> None:
    def download(name: str, archive: Path, into: Path) -> None:
        (into / UNPACKED[name]).mkdir()

    monkeypatch.setattr("vshift.data.cifar._unpack_or_download", download)
    old, new = tmp_path / ".fetch-old", tmp_path / ".fetch-new"
    for path in (old, new):
        path.mkdir()
        (path / "half").write_text("")
    os.utime(old, (1, time.time() - 2 * 86400))
    fetch("cifar10", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".fetch-new", UNPACKED["cifar10"]]
    file = tmp_path / "key.safetensors"
    (tmp_path / "key123.tmp").write_text("")
    os.utime(tmp_path / "key123.tmp", (1, 1))
    cache.write_images(file, np.zeros((1, 8, 8, 3), np.uint8))
    assert not (tmp_path / "key123.tmp").exists()
