"""Batches of images: order, crop, flip and mixtures are drawn from a seed, pixels come from one
gather.

Everything random is drawn on the CPU, so that every device sees the same batches, and copied over
once per epoch. Inside an epoch nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vshift.config.data import NO_AUGMENT, Augment
from vshift.data.images import ImageSet, Part, full_scale
from vshift.data.mixing import draw_boxes, draw_mixtures, inside, mix, one_hot


class Plan(NamedTuple):
    """One epoch's draws, for the image at each of its places; None for what is turned off.

    Attributes:
        order: [N], a permutation of the images.
        offsets: [N, 2], the crop's top and left in 0..2·crop.
        flips: [N] of bool.
        holes: [N, 4], the box that cutout erases.
        partners, shares, boxes: as `draw_mixtures` gives them.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor
    holes: Tensor | None = None
    partners: Tensor | None = None
    shares: Tensor | None = None
    boxes: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Plan:
        """The plan with a function applied to each tensor."""
        return Plan._make(tensor if tensor is None else function(tensor) for tensor in self)

    def at(self, places: slice | Tensor) -> Plan:
        """The draws for some places of the epoch."""
        return self.map(lambda tensor: tensor[places])

    def to(self, device: torch.device) -> Plan:
        if device.type == "cuda":
            return self.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self.map(lambda tensor: tensor.to(device))


def epoch_plan(count: int, augment: Augment, seed: int, batch_size: int = 1, size: int = 1) -> Plan:
    """Draw an epoch of `count` images on the CPU, from `seed` alone.

    Order, crops and flips are always drawn, so that turning crop off does not change order and
    flips; what else is turned on is drawn after them.

    Args:
        batch_size: images are mixed within a batch.
        size: height and width of the images in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    offsets = torch.randint(2 * augment.crop + 1, (count, 2), generator=generator)
    plan = Plan(order, offsets, flips if augment.flip else torch.zeros_like(flips))
    if augment.cutout:
        plan = plan._replace(holes=draw_boxes(count, augment.cutout, size, generator))
    if augment.mixes:
        partners, shares, boxes = draw_mixtures(count, batch_size, augment, size, generator)
        plan = plan._replace(partners=partners, shares=shares, boxes=boxes)
    return plan


class Stream:
    """The batches of one part on its device: float32 [B, C, H, W] channels_last, and labels.

    Labels are as the part has them, int64 [B] or float32 [B, D]; mixup and CutMix make
    distributions float32 [B, K] of the first. Random crops may show a black border of
    `augment.crop` pixels; black means pixel value 0 before normalisation.

    Args:
        classes: the number K; 0 where labels are numbers to predict.
    """

    def __init__(
        self,
        part: Part,
        mean: Tensor,
        std: Tensor,
        batch_size: int,
        augment: Augment = NO_AUGMENT,
        classes: int = 0,
    ) -> None:
        self.part, self.batch_size, self.augment, self.classes = part, batch_size, augment, classes
        # (x/full − mean)/std as one multiply-add, on whole rows of pixels: short loops over three
        # channels are slow. float64 on the way loses nothing.
        width = part.images.shape[2]
        self._scale = (1 / (full_scale(part.images) * std.double())).float().repeat(width)
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
            yield self.batch(plan.at(slice(start, start + self.batch_size)))

    def plan(self, seed: int) -> Plan:
        """The plan of this seed's epoch, on the CPU."""
        size = self.part.images.shape[1]
        return epoch_plan(len(self.part), self.augment, seed, self.batch_size, size)

    def batch(self, drawn: Plan) -> tuple[Tensor, Tensor]:
        """The batch that a part of a plan describes: cropped and flipped by one gather, then
        erased and mixed."""
        pixels, labels = self._gather(drawn.order, drawn.offsets, drawn.flips)
        images, size = self.normalise(pixels), pixels.shape[1]
        if drawn.holes is not None:
            images = images * ~inside(drawn.holes, size)
        if drawn.partners is not None and drawn.shares is not None and drawn.boxes is not None:
            targets = one_hot(labels, self.classes)
            images, labels = mix(images, targets, drawn.partners, drawn.shares, drawn.boxes)
        return images, labels

    def _gather(self, chosen: Tensor, offsets: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels [B, H, W, C] and labels of the images `chosen` [B]."""
        images = self.padded()
        side, channels = images.shape[2:]
        along = torch.arange(self.part.images.shape[1], device=images.device)
        top, left = offsets.unbind(1)
        rows = (chosen[:, None] * side + top[:, None] + along) * side
        columns = left[:, None] + torch.where(flips[:, None], along.flip(0), along)
        places = rows[:, :, None] + columns[:, None, :]
        every_pixel = images.view(-1, channels)
        pixels = every_pixel.index_select(0, places.flatten()).view(*places.shape, channels)
        labels = self.part.labels[chosen]
        if self.part.mirrored is not None:
            labels = torch.where(flips[:, None], self.part.mirrored[chosen], labels)
        return pixels, labels

    def plain(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, unchanged and in its own order."""
        for start in range(0, len(self.part), batch_size):
            now = slice(start, start + batch_size)
            yield self.normalise(self.part.images[now]), self.part.labels[now]

    def normalise(self, pixels: Tensor) -> Tensor:
        """[B, H, W, C] → float32 [B, C, H, W]; NHWC memory is channels_last already."""
        rows = pixels.flatten(2).to(torch.float32)
        values = torch.addcmul(self._shift, rows, self._scale)
        return values.view(pixels.shape).permute(0, 3, 1, 2)

    def padded(self) -> Tensor:
        """The images with their black border, [N, H + 2·crop, W + 2·crop, C]; made once."""
        if self._padded is None:
            c = self.augment.crop
            self._padded = F.pad(self.part.images, (0, 0, c, c, c, c)) if c else self.part.images
        return self._padded


def train_stream(images: ImageSet, batch_size: int, augment: Augment) -> Stream:
    """The augmented training batches of a set."""
    classes = len(images.classes)
    return Stream(images.train, images.mean, images.std, batch_size, augment, classes)


def plain_stream(images: ImageSet, part: Part, batch_size: int = 1000) -> Stream:
    """Batches of any part, normalised with the training images' statistics."""
    return Stream(part, images.mean, images.std, batch_size)
