"""Images that are alone where batch norm needs two: one value has no variance.

In a fully connected network an image has one value per channel, and elsewhere it may have in the
last stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vshift.config.networks import FullyConnected
from vshift.config.norm import BatchNorm, BatchRenorm
from vshift.config.schema import Config


@dataclass(frozen=True)
class _Batches:
    """Batches that some part of a run normalises with their own statistics."""

    of: str
    images: int
    is_plain: bool = False  # as `TrainingContext.plain` makes them

    def leave_one(self, size: int, group: int | None) -> bool:
        """Whether an image is alone in a batch of this size, or in a group of a batch."""
        if self.is_plain and self.images % size == 1:
            size += 1
        batches = {min(size, self.images), self.images % size} - {0}
        if group is None:
            return 1 in batches
        return any(group == 1 or batch % group == 1 for batch in batches)


def has_single_values(config: Config) -> bool:
    """Whether the config alone says that BN sees one value per channel and image."""
    layers = isinstance(config.norm, BatchNorm | BatchRenorm)
    is_flat = isinstance(config.network, FullyConnected)
    return layers and is_flat and any(str(op).startswith("bn") for op in config.network.order)


def lone_images(config: Config, train: int, validation: int, test: int) -> str | None:
    """What is wrong if images are alone in batches of their own statistics, and what works.

    Args:
        train, validation, test: the numbers of images.
    """
    uses = list(_uses(config, train, validation, test))
    size, group = config.data.batch_size, getattr(config.norm, "ghost", None)
    wrongs = [use for use in uses if use.leave_one(size, group)]
    if not wrongs:
        return None
    # One image in all is to blame whatever the sizes are.
    wrong = min(wrongs, key=lambda use: use.images > 1)

    def works(size: int, group: int | None) -> bool:
        return not any(use.leave_one(size, group) for use in uses)

    reason = f"and BN in {config.network.name} cannot take the variance of one value"
    if wrong.images == 1:
        key = {"test": "test_limit", "validation": "validation"}.get(wrong.of, "train_limit")
        return f"data.{key}: there is one {wrong.of} image, {reason}; try {key}: 2"
    if group is not None and not works(size, None):
        group = None  # the batches themselves are to blame
    if group is not None:
        near = sorted(range(2, 2 * group + size), key=lambda other: (abs(other - group), other))
        found = next((other for other in near if works(size, other)), None)
        return (
            f"norm.ghost: groups of {group} leave one of {wrong.images} {wrong.of} images alone, "
            f"{reason}; try {found or 'no groups, null'}"
        )
    larger = next((n for n in range(size + 1, size + wrong.images + 2) if works(n, group)), None)
    return (
        f"data.batch_size: the last batch of {wrong.images} images would hold a single one, "
        f"{reason}; try {larger or wrong.images}"
    )


def _uses(config: Config, train: int, validation: int, test: int) -> Iterator[_Batches]:
    yield _Batches("training", train)
    estimating = {*config.recalibration.methods} - {"batch", "mix"}
    if estimating and not config.recalibration.augment:
        yield _Batches("training", train, is_plain=True)
    on_test_batches = getattr(config.norm, "eval_statistics", "running") == "batch"
    own = {"batch", "mix"} & {*config.recalibration.methods}
    if on_test_batches or own or config.measure.modes:
        yield _Batches("test", test, is_plain=True)
    if on_test_batches and validation:
        yield _Batches("validation", validation, is_plain=True)
