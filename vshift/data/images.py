"""Image sets as tensors on the device: what `load` returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vshift.errors import DataError

STD_FLOOR = 1e-3  # of full scale: constant images are not divided by zero
CHUNK = 64  # images summed at once; 64 · 255² fits int32, and the copies fit the cache


@dataclass(frozen=True)
class Part:
    """The images of one part: `images` uint8 [N, H, W, C], `labels` int64 [N], on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Part:
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageSet:
    """A loaded data set; `mean` and `std` are float32 [C] of the training images, in 0..1."""

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part | None
    test: Part
    mean: Tensor
    std: Tensor

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


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std over uint8 images [N, H, W, C] as float32 [C] in 0..1.

    The sums are exact integers (no overflow below 10¹⁴ pixels), so every device and every order
    of the images gives the same two vectors.
    """
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


def _channel_sums(values: Tensor) -> Tensor:
    """Sums of int32 [n, H, W, C] over all but C, in two steps: the first is long and contiguous."""
    over_images = values.flatten(1).sum(dim=0, dtype=torch.int32)
    return over_images.view(-1, values.shape[-1]).sum(dim=0, dtype=torch.int64).cpu()
