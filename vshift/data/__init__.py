"""Image sets as tensors on the device; order, crop and flip.

`describe`, `available` and `fetch` do without torch, which `vshift check` must not import; what
needs torch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vshift.data.catalog import Description, Entry, available, describe
from vshift.data.cifar import fetch

if TYPE_CHECKING:
    from vshift.data.augment import Stream, epoch_plan, plain_stream, train_stream
    from vshift.data.images import ImageSet, Part
    from vshift.data.loading import load

__all__ = [
    "Description",
    "Entry",
    "ImageSet",
    "Part",
    "Stream",
    "available",
    "describe",
    "epoch_plan",
    "fetch",
    "load",
    "plain_stream",
    "train_stream",
]

_WITH_TORCH = {
    "ImageSet": "images",
    "Part": "images",
    "Stream": "augment",
    "epoch_plan": "augment",
    "load": "loading",
    "plain_stream": "augment",
    "train_stream": "augment",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"vshift.data.{_WITH_TORCH[name]}"), name)
