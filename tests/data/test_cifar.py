from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from tests.data.conftest import together
from vshift.config.data import Cifar
from vshift.data import describe, fetch, load
from vshift.data.cifar import ARCHIVE, UNPACKED, is_here
from vshift.errors import DataError

NAMES = [f"class{i}" for i in range(10)]


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A CIFAR-10 archive of 10 images a batch whose checksums torchvision is told to expect."""
    base = tmp_path / "made" / UNPACKED["cifar10"]
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in batches:
        data = random.integers(0, 256, (10, 3072), np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    made = tmp_path / ARCHIVE["cifar10"]
    with tarfile.open(made, "w:gz") as tar:
        tar.add(base, UNPACKED["cifar10"])
    lists = [[name, md5(base / name)] for name in batches]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[5:])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(base / "batches.meta")}
    )
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(made))
    return made


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cifar"
    folder.mkdir()
    return folder


def config(root, **options) -> Cifar:
    return Cifar(name="cifar10", root=str(root), **options)


def test_an_archive_put_into_the_root_is_unpacked_and_read(archive, root):
    archive.rename(root / archive.name)
    data = load(config(root, train_limit=20, validation=10))
    assert data.classes == tuple(NAMES)
    assert data.train.images.shape == (10, 32, 32, 3)
    assert data.test.labels.tolist() == list(range(10))
    raw = pickle.loads((root / UNPACKED["cifar10"] / "data_batch_1").read_bytes())["data"]
    expected = raw.reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert sorted(p.name for p in root.iterdir()) == sorted([archive.name, UNPACKED["cifar10"]])


def test_a_set_that_is_there_is_not_fetched_again(archive, root):
    archive.rename(root / archive.name)
    assert fetch("cifar10", str(root)) == root
    (root / archive.name).unlink()
    assert fetch("cifar10", str(root)) == root
    assert is_here("cifar10", str(root))


def test_a_damaged_archive(archive, root):
    (root / archive.name).write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged .*MD5.*delete it"):
        load(config(root))
    assert [p.name for p in root.iterdir()] == [archive.name]


def test_a_damaged_file_inside(archive, root):
    archive.rename(root / archive.name)
    fetch("cifar10", str(root))
    (root / UNPACKED["cifar10"] / "data_batch_3").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar-10-batches-py is damaged .*delete it and run"):
        load(config(root))


def test_no_network_says_where_to_put_the_file_and_leaves_nothing(root, monkeypatch):
    def torn(self):
        (self.root / "cifar-10-python.tar.gz").write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", torn)
    with pytest.raises(DataError) as caught:
        load(config(root))
    for part in ("cannot be downloaded", "no route to host", "cs.toronto.edu", "imagefolder"):
        assert part in str(caught.value)
    assert f"put it at {root / ARCHIVE['cifar10']}" in str(caught.value)
    assert list(root.iterdir()) == []


def test_the_default_root_is_the_cache(own_cache, monkeypatch):
    def torn(self):
        raise TimeoutError("timed out")

    monkeypatch.setattr(datasets.CIFAR10, "download", torn)
    with pytest.raises(DataError, match=f"put it at {own_cache}/cifar100/cifar-100-python"):
        fetch("cifar100")


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*file/cifar: Not a directory"):
        fetch("cifar10", str(tmp_path / "file" / "cifar"))


def test_describe_downloads_nothing(root):
    assert describe(config(root)).outputs == 10
    assert describe(Cifar(name="cifar100")).outputs == 100
    assert list(root.iterdir()) == []


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
    cifar.locked = __import__("contextlib").nullcontext
found = cifar.fetch("cifar10", str(root)) / cifar.UNPACKED["cifar10"]
print(sorted(path.name for path in found.iterdir()))
"""


@pytest.mark.parametrize("locks", [True, False])
def test_parallel_first_downloads(tmp_path: Path, locks: bool) -> None:
    root = tmp_path / "new" / "cifar"
    root.parent.mkdir()
    answers = together(FETCH, 3, str(root), *([] if locks else ["none"]))
    assert answers == ["['a', 'b']\n"] * 3
    assert len((root.parent / "downloads").read_text().split()) == (1 if locks else 3)
    assert [path.name for path in root.iterdir()] == [UNPACKED["cifar10"]]


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
