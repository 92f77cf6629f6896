"""Batches of images: order, crop and flip are drawn from a seed, pixels come from one gather.

Everything random is drawn on the CPU, so that every device sees the same batches, and copied over
once per epoch. Inside an epoch nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vshift.data.images import ImageSet, Part


@dataclass(frozen=True)
class Plan:
    """One epoch's draws: `order` [N] a permutation; for the image at each place of it, `offsets`
    [N, 2], the crop's top and left in 0..2·crop, and `flips` [N] of bool."""

    order: Tensor
    offsets: Tensor
    flips: Tensor

    def to(self, device: torch.device) -> Plan:
        tensors = (self.order, self.offsets, self.flips)
        if device.type == "cuda":
            return Plan(*(t.pin_memory().to(device, non_blocking=True) for t in tensors))
        return Plan(*(t.to(device) for t in tensors))


def epoch_plan(count: int, crop: int, flip: bool, seed: int) -> Plan:
    """Draw order, crops and flips of `count` images for one epoch, on the CPU, from `seed` alone.

    All three are always drawn, so that turning crop off does not change order and flips.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    offsets = torch.randint(2 * crop + 1, (count, 2), generator=generator)
    return Plan(order, offsets, flips if flip else torch.zeros_like(flips))


class Stream:
    """The batches of one part on its device: (float32 [B, C, H, W] channels_last, int64 [B]).

    `crop` is the width in pixels of the black border that random crops may show; black means
    pixel value 0 before normalisation.
    """

    def __init__(
        self,
        part: Part,
        mean: Tensor,
        std: Tensor,
        batch_size: int,
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        self.part, self.batch_size, self.crop, self.flip = part, batch_size, crop, flip
        # (x/255 − mean)/std as one multiply-add, on whole rows of pixels: short loops over three
        # channels are slow. float64 on the way loses nothing.
        width = part.images.shape[2]
        self._scale = (1 / (255 * std.double())).float().repeat(width)
        self._shift = (-mean.double() / std.double()).float().repeat(width)
        self._padded: Tensor | None = None

    @property
    def steps(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return -(-len(self.part) // self.batch_size)

    def epoch(self, seed: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in the order and with the crops and flips of `seed`.

        The first `skip` batches are left out without making them; the others do not change.
        """
        plan = self.plan(seed).to(self.part.images.device)
        for start in range(skip * self.batch_size, len(self.part), self.batch_size):
            now = slice(start, start + self.batch_size)
            yield self.batch(plan.order[now], plan.offsets[now], plan.flips[now])

    def plan(self, seed: int) -> Plan:
        """The plan of this seed's epoch, on the CPU."""
        return epoch_plan(len(self.part), self.crop, self.flip, seed)

    def batch(self, chosen: Tensor, offsets: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
        """The images `chosen` [B], cropped at `offsets` [B, 2] and flipped where `flips` [B] says:
        one gather for the three."""
        images = self.padded()
        side, channels = images.shape[2:]
        along = torch.arange(self.part.images.shape[1], device=images.device)
        top, left = offsets.unbind(1)
        rows = (chosen[:, None] * side + top[:, None] + along) * side
        columns = left[:, None] + torch.where(flips[:, None], along.flip(0), along)
        places = rows[:, :, None] + columns[:, None, :]
        every_pixel = images.view(-1, channels)
        pixels = every_pixel.index_select(0, places.flatten()).view(*places.shape, channels)
        return self.normalise(pixels), self.part.labels[chosen]

    def plain(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, unchanged and in its own order."""
        for start in range(0, len(self.part), batch_size):
            now = slice(start, start + batch_size)
            yield self.normalise(self.part.images[now]), self.part.labels[now]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] → float32 [B, C, H, W]; NHWC memory is channels_last already."""
        rows = pixels.flatten(2).to(torch.float32)
        values = torch.addcmul(self._shift, rows, self._scale)
        return values.view(pixels.shape).permute(0, 3, 1, 2)

    def padded(self) -> Tensor:
        """The images with their black border, uint8 [N, H + 2·crop, W + 2·crop, C]; made once."""
        if self._padded is None:
            c = self.crop
            self._padded = F.pad(self.part.images, (0, 0, c, c, c, c)) if c else self.part.images
        return self._padded


def train_stream(images: ImageSet, batch_size: int, crop: int, flip: bool) -> Stream:
    """The augmented training batches of a set."""
    return Stream(images.train, images.mean, images.std, batch_size, crop, flip)


def plain_stream(images: ImageSet, part: Part, batch_size: int = 1000) -> Stream:
    """Batches of any part, normalised with the training images' statistics."""
    return Stream(part, images.mean, images.std, batch_size)
