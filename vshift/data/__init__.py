"""Image sets as tensors on the device; order, crop and flip.

Importing this does not import torch, which `vshift check` must not; `ImageSet`, streams and what
else needs it are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vshift.data.library import fetch
from vshift.data.load import Description, Entry, available, counts, describe, load

if TYPE_CHECKING:
    from vshift.data.images import ImageSet, Part
    from vshift.data.stream import Stream, epoch_plan, plain_stream, train_stream

__all__ = [
    "Description",
    "Entry",
    "ImageSet",
    "Part",
    "Stream",
    "available",
    "counts",
    "describe",
    "epoch_plan",
    "fetch",
    "load",
    "plain_stream",
    "train_stream",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "images" if name in ("ImageSet", "Part") else "stream"
    return getattr(importlib.import_module(f"vshift.data.{module}"), name)
