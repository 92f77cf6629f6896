from __future__ import annotations

import hashlib
import pickle
import tarfile
import urllib.error

import numpy as np
import pytest
from torchvision import datasets

from vshift.config.schema import Cifar
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
    assert describe(config(root)).classes == 10
    assert describe(Cifar(name="cifar100")).classes == 100
    assert list(root.iterdir()) == []
