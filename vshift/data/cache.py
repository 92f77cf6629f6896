"""The user's cache folder: downloads, and decoded images that make a second start fast."""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vshift.cache import cache_folder

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


def _checksum(images: Pixels) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(images).data):08x}"
