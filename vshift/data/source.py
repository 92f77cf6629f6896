"""What every data set offers before its pixels are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A data set whose labels are known and whose images are read on demand.

    `read(train, test)` takes increasing positions in the two label lists and returns the two
    stacks of images, uint8 [n, H, W, C]; it may raise DataError.
    """

    name: str
    classes: tuple[str, ...]
    train_labels: Labels
    test_labels: Labels
    read: Callable[[Labels, Labels], tuple[Pixels, Pixels]]
