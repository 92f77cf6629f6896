"""The user's cache folder: downloads, and decoded images that make a second start fast."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vshift.cache import cache_folder

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("vshift.data")
Pixels = NDArray[np.uint8]


def images_file(key: str) -> Path:
    return cache_folder() / "images" / f"{key}.safetensors"


def read_images(path: Path) -> Pixels | None:
    """The images of a cache file; None if there is none or it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            images: Pixels = file.get_tensor("images")
            intact = (file.metadata() or {}).get("crc32") == _checksum(images)
        return images if intact else None
    except Exception:  # whatever is wrong with a cache file, the images are decoded again
        return None


def write_images(path: Path, images: Pixels) -> None:
    """Write a cache file, whole or not at all; a failure is one line of warning, not an error."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_old(path.parent, f"{path.stem}*.tmp")
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        os.close(handle)
        save_file({"images": images}, temporary, metadata={"crc32": _checksum(images)})
        os.replace(temporary, path)
    except Exception as error:  # safetensors has its own exception for a full disk
        log.warning(
            "cannot cache the decoded images in %s (%s); the next start decodes them again. "
            "VSHIFT_CACHE names another folder.",
            path.parent,
            error,
        )
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder with its parents; those that were made for it go again if nothing came into them."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        with suppress(OSError):  # the first one that holds something stays, and so do its parents
            for path in missing:
                path.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process of this machine after the other, where the file system can lock.

    Saves work, and nothing depends on it: what is made in here is put in place by one rename.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_old(folder: Path, pattern: str, age: float = 86400.0) -> None:
    """Remove what processes that were killed left behind, `age` seconds after they last wrote."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checksum(images: Pixels) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(images).data):08x}"
