"""A data set before its pixels are read, and which of its images a run uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vshift.errors import DataError
from vshift.text import list_names

Classes = NDArray[np.int64]
Numbers = NDArray[np.float32]
Labels = Classes | Numbers
Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """A data set whose labels are known and whose images are read on demand.

    Attributes:
        classes: their names; () where the labels are numbers to predict, [N, D].
        read: takes increasing positions in the two label lists and returns the two stacks of
            images, uint8 or float32 [n, H, W, C]; it may raise DataError.
        mirror_negates: the mirror image of a number's image shows its negative.
        standardize: numbers are brought to mean 0 and standard deviation 1.
        note: what a user should know of the data; empty for nothing.
    """

    name: str
    classes: tuple[str, ...]
    train_labels: Labels
    test_labels: Labels
    read: Callable[[Indices, Indices], tuple[Pixels, Pixels]]
    mirror_negates: bool = False
    standardize: bool = True
    note: str = ""


@dataclass(frozen=True)
class Selection:
    """Sorted positions in the source's lists; `validation` is empty if none is held out."""

    train: Indices
    validation: Indices
    test: Indices


def select(
    train_labels: Labels,
    test_labels: Labels,
    classes: tuple[str, ...],
    *,
    train_limit: int | None,
    test_limit: int | None,
    validation: int,
) -> Selection:
    """Choose the images that the limits keep, the same number of every class, if there are any.

    A limit keeps the first images of every class; validation takes the last ones of what is kept.

    Raises:
        DataError: a class would have no image to train on, or there are no test images.
    """
    if not classes:  # numbers: every image is of one kind
        classes = ("every image",)
        train_labels, test_labels = (
            np.zeros(len(labels), np.int64) for labels in (train_labels, test_labels)
        )
    kept = first_of_each_class(train_labels, train_limit, len(classes))
    test = first_of_each_class(test_labels, test_limit, len(classes))
    if validation >= len(kept):
        raise DataError(
            f"data.validation: {validation} images are to be held out of {len(kept)} training "
            "images, which leaves none to train on; lower validation or raise train_limit"
        )
    last = first_of_each_class(train_labels[kept[::-1]], validation, len(classes))
    held_out = np.zeros(len(kept), dtype=bool)
    held_out[len(kept) - 1 - last] = True
    train = kept[~held_out]
    counts = np.bincount(train_labels[train], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        names = list_names([f"`{name}`" for name in empty], 3)
        raise DataError(
            f"data: {names} of {len(classes)} classes would have no training image "
            f"(train_limit {train_limit or 'unset'}, validation {validation}); "
            f"raise train_limit to at least {len(classes)} plus validation, or lower validation"
        )
    if len(test) == 0:
        raise DataError("data: there are no test images; testing needs at least one")
    return Selection(train, kept[held_out], test)


def first_of_each_class(labels: Labels, limit: int | None, classes: int) -> Indices:
    """Positions of the first images of every class, `limit` together, in their old order."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    counts = shares(limit, [len(m) for m in members])
    return np.sort(np.concatenate([m[:n] for m, n in zip(members, counts, strict=True)]))


def shares(total: int, available: list[int]) -> list[int]:
    """Divide `total` images over classes: equal shares, the rest to the first classes.

    A class that has too few gives all it has, and the others share what is left just as equally.
    """
    taken = [0] * len(available)
    left = min(total, sum(available))
    while left:
        able = [i for i, count in enumerate(available) if taken[i] < count][:left]
        # As many for each as the one with the fewest can still give.
        step = min(left // len(able), *(available[i] - taken[i] for i in able))
        for i in able:
            taken[i] += step
        left -= step * len(able)
    return taken
