"""Batches of training images: order, crop and flip come from a seed, pixels from one gather.

Everything random is drawn on the CPU, so that every device sees the same batches, and sent over
once an epoch. Inside an epoch nothing waits for the device.
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
        return Plan(*(_send(t, device) for t in (self.order, self.offsets, self.flips)))


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def epoch_plan(count: int, crop: int, flip: bool, seed: int) -> Plan:
    """What happens to `count` images in one epoch, drawn on the CPU from `seed` alone.

    All three are drawn whatever is turned on, so turning crop off leaves order and flips alone.
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
        """Batches an epoch; the last one may be smaller."""
        return -(-len(self.part) // self.batch_size)

    def epoch(self, seed: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in the order and with the crops and flips that `seed` gives.

        The first `skip` batches are left out without making them: the others are as they were.
        """
        images = self.padded()
        side, channels = images.shape[2:]
        every_pixel = images.view(-1, channels)
        plan = epoch_plan(len(self.part), self.crop, self.flip, seed).to(images.device)
        along = torch.arange(self.part.images.shape[1], device=images.device)
        backwards = along.flip(0)
        for start in range(skip * self.batch_size, len(self.part), self.batch_size):
            now = slice(start, start + self.batch_size)
            top, left = plan.offsets[now].unbind(1)
            chosen = plan.order[now]
            rows = (chosen[:, None] * side + top[:, None] + along) * side
            columns = left[:, None] + torch.where(plan.flips[now, None], backwards, along)
            places = rows[:, :, None] + columns[:, None, :]
            pixels = every_pixel.index_select(0, places.flatten()).view(*places.shape, channels)
            yield self.normalise(pixels), self.part.labels[chosen]

    def plain(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as it is and in its own order."""
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
