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
from vshift.config.data import Cifar, OwnData
from vshift.data import describe, fetch, load
from vshift.data.library import SETS, is_here
from vshift.errors import DataError

UNPACKED, ARCHIVE = SETS["cifar10"].unpacked[0], SETS["cifar10"].archive
NAMES = [f"class{i}" for i in range(10)]


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A CIFAR-10 archive of 10 images a batch whose checksums torchvision is told to expect."""
    base = tmp_path / "made" / UNPACKED
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in batches:
        data = random.integers(0, 256, (10, 3072), np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    made = tmp_path / ARCHIVE
    with tarfile.open(made, "w:gz") as tar:
        tar.add(base, UNPACKED)
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
    raw = pickle.loads((root / UNPACKED / "data_batch_1").read_bytes())["data"]
    expected = raw.reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert sorted(p.name for p in root.iterdir()) == sorted([archive.name, UNPACKED])


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
    (root / UNPACKED / "data_batch_3").write_bytes(b"torn")
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
    assert f"put it at {root / ARCHIVE}" in str(caught.value)
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
from vshift.data import library
root = Path(sys.argv[1])
def download(name, root, into):
    with open(root.parent / "downloads", "a") as file:
        file.write(f"{os.getpid()}\\n")
    (into / library.SETS[name].unpacked[0]).mkdir()
    time.sleep(1)
    for part in ("a", "b"):
        (into / library.SETS[name].unpacked[0] / part).write_text(part)
library._unpack_or_download = download
if sys.argv[2:]:  # as on two machines whose disk has no locks
    library.locked = __import__("contextlib").nullcontext
found = library.fetch("cifar10", str(root)) / library.SETS["cifar10"].unpacked[0]
print(sorted(path.name for path in found.iterdir()))
"""


@pytest.mark.parametrize("locks", [True, False])
def test_parallel_first_downloads(tmp_path: Path, locks: bool) -> None:
    root = tmp_path / "new" / "cifar"
    root.parent.mkdir()
    answers = together(FETCH, 3, str(root), *([] if locks else ["none"]))
    assert answers == ["['a', 'b']\n"] * 3
    assert len((root.parent / "downloads").read_text().split()) == (1 if locks else 3)
    assert [path.name for path in root.iterdir()] == [UNPACKED]


def test_a_failed_fetch_leaves_no_empty_folders(
    tmp_path: Path, own_cache: Path, monkeypatch
) -> None:
    def fail(name: str, root: Path, into: Path) -> None:
        (into / "half").write_bytes(b"half")
        raise DataError("no network")

    monkeypatch.setattr("vshift.data.library._unpack_or_download", fail)
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

    def download(name: str, root: Path, into: Path) -> None:
        (into / UNPACKED).mkdir()

    monkeypatch.setattr("vshift.data.library._unpack_or_download", download)
    (tmp_path / UNPACKED).write_text("a file")
    with pytest.raises(DataError, match=r"cannot write to"):
        fetch("cifar10", str(tmp_path))


def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path: Path, monkeypatch) -> None:
    def download(name: str, root: Path, into: Path) -> None:
        (into / UNPACKED).mkdir()

    monkeypatch.setattr("vshift.data.library._unpack_or_download", download)
    old, new = tmp_path / ".fetch-old", tmp_path / ".fetch-new"
    for path in (old, new):
        path.mkdir()
        (path / "half").write_text("")
    os.utime(old, (1, time.time() - 2 * 86400))
    fetch("cifar10", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".fetch-new", UNPACKED]


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files: two zeros, the type, the number of axes, their lengths."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + (
        array.tobytes()
    )  # fmt: skip


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_grey_images_are_read_as_they_lie_in_the_files(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(0)
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    images = random.integers(0, 256, (30, 28, 28), np.uint8)
    for part, count in (("train", 30), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    section = OwnData(name=f"torchvision:{name}", root=str(tmp_path))
    data = load(section)
    assert np.array_equal(data.train.images[..., 0].numpy(), images)
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]
    found = describe(section)
    assert (found.outputs, found.channels, found.size) == (10, data.channels, data.size)


def test_colour_images_of_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    random, lists = np.random.default_rng(0), {}
    pixels = random.integers(0, 256, (32, 32, 3, 20), np.uint8)
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        savemat(path, {"X": pixels, "y": np.arange(1, 21)[:, None] % 10 + 1})
        lists[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", {**lists, "extra": lists["test"]})
    data = load(OwnData(name="torchvision:SVHN", root=str(tmp_path)))
    assert np.array_equal(data.train.images.numpy(), pixels.transpose(3, 0, 1, 2))
    assert data.train.labels[:3].tolist() == [2, 3, 4]
    assert sorted(set(data.test.labels.tolist())) == list(range(10))
    (tmp_path / "test_32x32.mat").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"is damaged .*corrupted.*delete it"):
        load(OwnData(name="torchvision:SVHN", root=str(tmp_path)))


def test_without_a_network_torchvision_is_named_and_what_to_copy(tmp_path, monkeypatch) -> None:
    def torn(self):
        raise RuntimeError("Error downloading train:\nTried a mirror, got:\nno route")

    monkeypatch.setattr(datasets.MNIST, "download", torn)
    with pytest.raises(DataError) as caught:
        load(OwnData(name="torchvision:MNIST", root=str(tmp_path)))
    for part in ("torchvision:MNIST is not in", "no route", "torchvision.datasets.MNIST",
                 f"copy MNIST to {tmp_path}", "shapes"):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
