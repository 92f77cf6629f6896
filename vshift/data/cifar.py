"""CIFAR-10 and CIFAR-100 through torchvision, which is imported only when one of them is used."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vshift.cache import cache_folder, locked, remove_old
from vshift.config.data import Cifar
from vshift.data.source import Indices, Pixels, Source
from vshift.errors import DataError
from vshift.text import did_you_mean

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES = {"cifar10": 10, "cifar100": 100}
UNPACKED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVE = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
TIMEOUT = 20  # seconds without an answer after which a download counts as failed


def root_of(name: str, root: str | None) -> Path:
    return Path(root).expanduser().absolute() if root else cache_folder() / name


def is_here(name: str, root: str | None = None) -> bool:
    """Whether the unpacked set is in its folder."""
    return (root_of(name, root) / UNPACKED[name]).is_dir()


def open_cifar(config: Cifar) -> Source:
    """Open the set with torchvision, downloading it if it is missing; DataError if damaged."""
    root = fetch(config.name, config.root)
    dataset = _torchvision(config.name)
    try:
        train, test = (dataset(root, train=part, download=False) for part in (True, False))
    except Exception as error:  # a failed checksum, or whatever unpickling a damaged file raises
        raise _damaged(root / UNPACKED[config.name], error) from None

    def read(chosen: Indices, chosen_test: Indices) -> tuple[Pixels, Pixels]:
        return train.data[chosen], test.data[chosen_test]

    labels = [np.asarray(part.targets, np.int64) for part in (train, test)]
    return Source(config.name, tuple(train.classes), labels[0], labels[1], read)


def fetch(name: str, root: str | None = None) -> Path:
    """Download and unpack a set unless it is there already; returns its root folder.

    An archive in the root folder is used instead of the network. Raises DataError if the set can
    neither be found nor downloaded; nothing partial is left.
    """
    if name not in UNPACKED:
        hint = did_you_mean(name, UNPACKED)
        raise DataError(
            f"{name!r}: nothing to download under this name; {hint + ' ' if hint else ''}"
            f"there are {' and '.join(UNPACKED)}; shapes is drawn by code, imagefolder is your own"
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
                _unpack_or_download(name, folder / ARCHIVE[name], Path(temporary))
                try:
                    os.rename(Path(temporary) / UNPACKED[name], folder / UNPACKED[name])
                except OSError:
                    # Two machines may download at the same time: the first one to finish wins.
                    if not is_here(name, root):
                        raise
    except OSError as error:
        raise DataError(f"data.root: cannot write to {folder}: {error.strerror or error}") from None
    return folder


def _unpack_or_download(name: str, archive: Path, into: Path) -> None:
    dataset = _torchvision(name)
    if archive.exists():
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
            dataset(into, download=True)
    except Exception as error:  # urllib, http, ssl, tarfile and torchvision raise their own kinds
        raise DataError(
            f"data: {name} is not in {archive.parent} and cannot be downloaded ({error}). Get "
            f"{archive.name} from {PAGE} on a machine with network access and put it at {archive}, "
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
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


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
