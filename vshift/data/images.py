"""Image sets as tensors on the device: what `load` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vshift.errors import DataError

STD_FLOOR = 1e-3  # of full scale: constant images are not divided by zero
CHUNK = 64  # images summed at once; 64 · 255² fits int32, and the copies fit the cache


@dataclass(frozen=True)
class Part:
    """The images of one part, on one device.

    Attributes:
        images: [N, H, W, C], uint8 from 0 to 255 or float32 in units of their own.
        labels: classes int64 [N], or numbers to predict float32 [N, D], unless configured otherwise
            in standard deviations of the training images' from their mean.
        mirrored: the numbers that belong to the mirror images, where those are others.
    """

    images: Tensor
    labels: Tensor
    mirrored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Part:
        mirrored = self.mirrored if self.mirrored is None else self.mirrored.to(device)
        return Part(self.images.to(device), self.labels.to(device), mirrored)


@dataclass(frozen=True)
class ImageSet:
    """A loaded data set.

    Attributes:
        classes: their names; () where numbers are predicted.
        mean, std: float32 [C] of the training images: in 0..1 of uint8, else in their own units.
        target_std: the unit of the numbers to predict in their own units, float64 [D]; None for
            classes.
        note: what a user should know of the data; empty for nothing.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part | None
    test: Part
    mean: Tensor
    std: Tensor
    target_std: Tensor | None = None
    note: str = ""

    @property
    def outputs(self) -> int:
        """What a network gives per image: a logit for each class, or the numbers."""
        return len(self.classes) or self.train.labels.shape[1]

    @property
    def channels(self) -> int:
        return self.train.images.shape[3]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[1]

    def to(self, device: torch.device | str) -> ImageSet:
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation and self.validation.to(device),
            test=self.test.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
            target_std=None if self.target_std is None else self.target_std.to(device),
        )


def image_set(
    name: str, classes: tuple[str, ...], train: Part, validation: Part | None, test: Part
) -> ImageSet:
    """An ImageSet with its training images' mean and std; DataError if the shapes do not fit."""
    parts = {"training": train, "validation": validation, "test": test}
    for use, part in parts.items():
        if part is not None:
            what = f"{name}: the {use} images"
            count, height, width, channels = part.images.shape
            _, h, w, c = train.images.shape
            if height != width:
                raise DataError(
                    f"{what} are {width}×{height} pixels; they must be square: set data.size"
                )
            if (height, width, channels) != (h, w, c):
                raise DataError(
                    f"{what} are {width}×{height} pixels with {channels} channels, the training "
                    f"images {w}×{h} with {c}; set data.size to resize all of them"
                )
            if count != len(part.labels):
                raise DataError(f"{what} are {count}, and their labels {len(part.labels)}")
    mean, std = channel_statistics(train.images)
    return ImageSet(name, classes, train, validation, test, mean, std)


def with_numbers(images: ImageSet, *, standardize: bool, mirror_negates: bool) -> ImageSet:
    """The set of which labels, numbers in their own units, are to be predicted.

    Args:
        standardize: bring them to mean 0 and standard deviation 1 of the training images' ones.
        mirror_negates: the mirror image of a number's image shows its negative.
    """
    numbers = images.train.labels.double()
    mean, std = numbers.mean(0), numbers.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    if not standardize:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)

    def scaled(labels: Tensor) -> Tensor:
        return ((labels.double() - mean) / std).float()

    def part(of: Part) -> Part:
        return Part(of.images, scaled(of.labels), scaled(-of.labels) if mirror_negates else None)

    return replace(
        images,
        train=part(images.train),
        validation=images.validation and part(images.validation),
        test=part(images.test),
        target_std=std,
    )


def full_scale(images: Tensor) -> int:
    """What uint8 images are divided by before `mean` and `std` apply; 1 for floats."""
    return 255 if images.dtype == torch.uint8 else 1


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std over uint8 images [N, H, W, C] as float32 [C] in 0..1.

    The sums are exact integers (no overflow below 10¹⁴ pixels), so every device and every order
    of the images gives the same two vectors. Of float images they are in the images' own units.
    """
    if images.is_floating_point():
        return _float_statistics(images)
    pixels = images[..., 0].numel()
    total = torch.zeros(images.shape[-1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, CHUNK):
        values = chunk.to(torch.int32)
        total += _channel_sums(values)
        squares += _channel_sums(values * values)
    # Python's integers: exact where pixels · squares would overflow int64.
    means = [t / (255 * pixels) for t in total.tolist()]
    variances = [
        (pixels * s - t * t) / (255 * pixels) ** 2
        for t, s in zip(total.tolist(), squares.tolist(), strict=True)
    ]
    stds = [max(variance**0.5, STD_FLOOR) for variance in variances]
    return torch.tensor(means).to(images.device), torch.tensor(stds).to(images.device)


def _float_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std in float64 and two passes; full scale is the largest value."""
    pixels = images[..., 0].numel()

    def sums(of: Callable[[Tensor], Tensor]) -> Tensor:
        chunks = [of(chunk.double()).flatten(0, -2).sum(0) for chunk in torch.split(images, CHUNK)]
        return torch.stack(chunks).sum(0)

    mean = sums(lambda values: values) / pixels
    std = (sums(lambda values: (values - mean).square()) / pixels).sqrt()
    largest = float(images.abs().max())
    return mean.float(), std.clamp(min=STD_FLOOR * largest if largest else 1.0).float()


def _channel_sums(values: Tensor) -> Tensor:
    """Sums of int32 [n, H, W, C] over all but C, in two steps: the first is long and contiguous."""
    over_images = values.flatten(1).sum(dim=0, dtype=torch.int32)
    return over_images.view(-1, values.shape[-1]).sum(dim=0, dtype=torch.int64).cpu()
