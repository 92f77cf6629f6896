"""Which images a run uses: limits and the validation split, balanced over classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vshift.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Sorted positions in the source's lists; `validation` is empty if none is held out."""

    train: Indices
    validation: Indices
    test: Indices


def select(
    train_labels: Indices,
    test_labels: Indices,
    classes: tuple[str, ...],
    *,
    train_limit: int | None,
    test_limit: int | None,
    validation: int,
) -> Selection:
    """The images that the limits keep; raises DataError if a class would have none to train on.

    A limit keeps the first images of every class; validation takes the last ones of what is kept.
    """
    kept = first_of_each_class(train_labels, train_limit, len(classes))
    test = first_of_each_class(test_labels, test_limit, len(classes))
    train, held_out = _hold_out(kept, train_labels, validation, len(classes))
    _every_class_trains(train_labels[train], classes, train_limit, validation)
    if len(test) == 0:
        raise DataError("data: there are no test images; testing needs at least one")
    return Selection(train, held_out, test)


def shares(total: int, available: list[int]) -> list[int]:
    """How many of `total` images each class gives: equal shares, the rest to the first classes.

    A class that has too few gives all it has, and the others fill up.
    """
    taken = [0] * len(available)
    left = min(total, sum(available))
    while left:
        able = [i for i, count in enumerate(available) if taken[i] < count]
        share, extra = divmod(left, len(able))
        for rank, i in enumerate(able):
            step = min(share + (rank < extra), available[i] - taken[i])
            taken[i] += step
            left -= step
    return taken


def first_of_each_class(labels: Indices, limit: int | None, classes: int) -> Indices:
    """Positions of the first images of every class, `limit` together, in their old order."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    counts = shares(limit, [len(m) for m in members])
    return np.sort(np.concatenate([m[:n] for m, n in zip(members, counts, strict=True)]))


def _hold_out(kept: Indices, labels: Indices, count: int, classes: int) -> tuple[Indices, Indices]:
    """(training, validation): the last `count` of the kept images, balanced over classes."""
    if count >= len(kept):
        raise DataError(
            f"data.validation: {count} images are to be held out of {len(kept)} training images, "
            "which leaves none to train on; lower validation or raise train_limit"
        )
    from_the_end = kept[::-1]
    last = first_of_each_class(labels[from_the_end], count, classes)
    held_out = np.zeros(len(kept), dtype=bool)
    held_out[len(kept) - 1 - last] = True
    return kept[~held_out], kept[held_out]


def _every_class_trains(
    labels: Indices, classes: tuple[str, ...], limit: int | None, validation: int
) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"data: {_some(empty)} of {len(classes)} classes would have no training image "
            f"(train_limit {limit or 'unset'}, validation {validation}); "
            f"raise train_limit to at least {len(classes)} plus validation, or lower validation"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
