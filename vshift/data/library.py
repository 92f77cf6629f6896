"""Data sets of torchvision, downloaded once; it is imported only when one of them is used."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vshift.cache import cache_folder, locked, remove_old
from vshift.data.source import Indices, Pixels, Source
from vshift.errors import DataError
from vshift.text import did_you_mean, list_names


@dataclass(frozen=True)
class LibrarySet:
    """A data set of torchvision.

    Attributes:
        dataset: the class in `torchvision.datasets`.
        train, test: numbers of images.
        unpacked: what lies in its root folder once it is there.
        page: where its files come from.
        archive: a file in the root folder that is unpacked instead of downloaded; empty for none.
        parts: the class's arguments for the training and the test images.
        labels: the attribute that holds the labels.
    """

    dataset: str
    classes: int
    channels: int
    size: int
    train: int
    test: int
    unpacked: tuple[str, ...]
    page: str
    archive: str = ""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
    labels: str = "targets"


_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
SETS = {
    "cifar10": LibrarySet("CIFAR10", 10, 3, 32, 50_000, 10_000, ("cifar-10-batches-py",), _CIFAR,
                          archive="cifar-10-python.tar.gz"),
    "cifar100": LibrarySet("CIFAR100", 100, 3, 32, 50_000, 10_000, ("cifar-100-python",), _CIFAR,
                           archive="cifar-100-python.tar.gz"),
    "torchvision:MNIST": LibrarySet("MNIST", 10, 1, 28, 60_000, 10_000, ("MNIST",),
                                    "http://yann.lecun.com/exdb/mnist"),
    "torchvision:FashionMNIST": LibrarySet("FashionMNIST", 10, 1, 28, 60_000, 10_000,
                                           ("FashionMNIST",),
                                           "https://github.com/zalandoresearch/fashion-mnist"),
    "torchvision:KMNIST": LibrarySet("KMNIST", 10, 1, 28, 60_000, 10_000, ("KMNIST",),
                                     "http://codh.rois.ac.jp/kmnist"),
    "torchvision:SVHN": LibrarySet("SVHN", 10, 3, 32, 73_257, 26_032,
                                   ("train_32x32.mat", "test_32x32.mat"),
                                   "http://ufldl.stanford.edu/housenumbers",
                                   parts=({"split": "train"}, {"split": "test"}), labels="labels"),
}  # fmt: skip
TIMEOUT = 20  # seconds without an answer after which a download counts as failed


def root_of(name: str, root: str | None) -> Path:
    default = cache_folder() / name.removeprefix("torchvision:")
    return Path(root).expanduser().absolute() if root else default


def is_here(name: str, root: str | None = None) -> bool:
    """Whether the unpacked set is in its folder."""
    entries = [root_of(name, root) / entry for entry in SETS[name].unpacked]
    return all(path.is_file() if path.suffix else path.is_dir() for path in entries)


def open_library(name: str, root: str | None) -> Source:
    """Open a set with torchvision, downloading it if it is missing; DataError if damaged."""
    found, folder = SETS[name], fetch(name, root)
    dataset = _torchvision(name)
    try:
        train, test = (dataset(folder, download=False, **part) for part in found.parts)
    except Exception as error:  # a failed checksum, or whatever unpickling a damaged file raises
        raise _damaged(folder / found.unpacked[0], error) from None
    pixels = [_channels_last(np.asarray(part.data)) for part in (train, test)]
    labels = [np.asarray(getattr(part, found.labels), np.int64) for part in (train, test)]
    classes = tuple(map(str, getattr(train, "classes", range(found.classes))))

    def read(chosen: Indices, chosen_test: Indices) -> tuple[Pixels, Pixels]:
        return pixels[0][chosen], pixels[1][chosen_test]

    return Source(name, classes, labels[0], labels[1], read)


def _channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey [N, H, W], colour [N, H, W, 3] or [N, 3, H, W] → [N, H, W, C]."""
    if pixels.ndim == 3:
        return pixels[..., None]
    return pixels if pixels.shape[3] == 3 else pixels.transpose(0, 2, 3, 1)


def fetch(name: str, root: str | None = None) -> Path:
    """Download and unpack a set unless it is there already; returns its root folder.

    An archive in the root folder is used instead of the network. Raises DataError if the set can
    neither be found nor downloaded; nothing partial is left.
    """
    if name not in SETS:
        hint = did_you_mean(name, SETS)
        raise DataError(
            f"{name!r}: nothing to download under this name; {hint + ' ' if hint else ''}there are "
            f"{list_names(list(SETS), len(SETS))}; shapes and patterns are drawn by code, "
            "imagefolder is your own"
        )
    folder = root_of(name, root)
    if is_here(name, root):
        return folder
    try:
        with made(folder), locked(folder):
            if is_here(name, root):  # another process fetched it while this one waited
                return folder
            remove_old(folder, ".fetch-*")
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
                _unpack_or_download(name, folder, Path(temporary))
                try:
                    for entry in SETS[name].unpacked:
                        os.rename(Path(temporary) / entry, folder / entry)
                except OSError:
                    # Two machines may download at the same time: the first one to finish wins.
                    if not is_here(name, root):
                        raise
    except OSError as error:
        raise DataError(f"data.root: cannot write to {folder}: {error.strerror or error}") from None
    return folder


def _unpack_or_download(name: str, root: Path, into: Path) -> None:
    found, dataset = SETS[name], _torchvision(name)
    archive = root / found.archive
    if found.archive and archive.exists():
        from torchvision.datasets.utils import check_integrity, extract_archive

        try:
            if not check_integrity(str(archive), dataset.tgz_md5):
                raise ValueError("its MD5 sum is not the published one")
            extract_archive(str(archive), str(into))
        except Exception as error:  # tarfile and torchvision raise their own kinds
            raise _damaged(archive, error) from None
        return
    try:
        with _download_timeout(), contextlib.redirect_stdout(sys.stderr):
            for part in found.parts:
                dataset(into, download=True, **part)
    except Exception as error:  # urllib, http, ssl, tarfile and torchvision raise their own kinds
        where = f"Get {found.archive} from {found.page} on a machine with network access and put "
        where += f"it at {archive}"
        if not found.archive:
            where = (
                f"Let torchvision.datasets.{found.dataset} download it ({found.page}) on a machine "
                f"with network access and copy {list_names(found.unpacked, 2)} to {root}"
            )
        reason = " ".join(str(error).split())
        raise DataError(
            f"data: {name} is not in {root} and cannot be downloaded ({reason}). {where}, "
            "or use `name: imagefolder` with images of your own, or `name: shapes`, which needs no "
            "download"
        ) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"data.root: {path} is damaged ({str(error).splitlines()[0]}); delete it and run "
        "`vshift data fetch`, or the same command, again"
    )


def _torchvision(name: str) -> Any:
    """torchvision's class of the set; DataError if torchvision cannot be imported."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(
            f"data: {name} needs torchvision, which cannot be imported ({error}); install torch "
            "and torchvision from the same index in one command"
        ) from None
    return getattr(datasets, SETS[name].dataset)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder with its parents, and remove those again into which nothing came."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty stays with its parents
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def _download_timeout() -> Iterator[None]:
    """Set a timeout, which torchvision does not: a stalled download would never end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
