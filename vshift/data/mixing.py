"""Cutout, mixup and CutMix: drawn for an epoch on the CPU, applied to batches on the device.

A mixture is w·x + (1 − w)·x[partner] with a weight w of every pixel, and its target has the
pixels' mean weight: mixup (Zhang et al. 2018, 1710.09412) has one weight λ ~ Beta(α, α) for a
batch; CutMix (Yun et al. 2019, 1905.04899) has 0 in a box of the share 1 − λ of the image, cut at
its borders, and 1 around it. Cutout (DeVries and Taylor 2017, 1708.04552) erases a square around a
random pixel of every image. Boxes are those of the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vshift.config.data import Augment


def draw_boxes(count: int, sides: Tensor | int, size: int, generator: torch.Generator) -> Tensor:
    """Top, bottom, left and right of squares around uniform pixels, cut at the borders, [N, 4]."""
    centres = torch.randint(size, (count, 2), generator=generator)
    half = torch.as_tensor(sides).expand(count)[:, None] // 2
    low, high = (centres - half).clamp(min=0), (centres + half).clamp(max=size)
    return torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def draw_mixtures(
    count: int, batch_size: int, augment: Augment, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw with what each of an epoch's images is mixed; one λ and one box per batch.

    Returns:
        partners: [N], each image's partner by its place in the same batch, a permutation of it.
        shares: float32 [N], the image's weight outside the box.
        boxes: [N, 4], where its weight is 0.
    """
    from scipy.special import betaincinv  # slow to import, and most runs do not mix

    sizes = [len(places) for places in torch.split(torch.arange(count), batch_size)]
    partners = torch.cat([torch.randperm(n, generator=generator) for n in sizes])
    is_mixed, choice, level = torch.rand(
        3, len(sizes), dtype=torch.float64, generator=generator
    ).unbind()
    is_cut = choice < (0.5 if augment.mixup else 1.0) * bool(augment.cutmix)
    alpha = torch.where(is_cut, augment.cutmix, augment.mixup).double()
    share = torch.from_numpy(betaincinv(alpha.numpy(), alpha.numpy(), level.numpy()))
    share[is_mixed >= augment.mix_probability] = 1.0
    sides = (size * (1 - share).sqrt()).long() * is_cut
    boxes = draw_boxes(len(sizes), sides, size, generator)
    shares = torch.where(is_cut, 1.0, share).float()
    each = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return partners, shares[each], boxes[each]


def inside(boxes: Tensor, size: int) -> Tensor:
    """The pixels inside boxes [B, 4], bool [B, 1, size, size]."""
    along = torch.arange(size, device=boxes.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = (along >= top) & (along < bottom), (along >= left) & (along < right)
    return rows[:, None, :, None] & columns[:, None, None, :]


def mix(
    images: Tensor, targets: Tensor, partners: Tensor, shares: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix images [B, C, H, W] and targets [B, K], as `draw_mixtures` drew it."""
    size = images.shape[-1]
    weight = shares[:, None, None, None].masked_fill(inside(boxes, size), 0.0)
    mixed = images * weight + images[partners] * (1 - weight)
    top, bottom, left, right = boxes.unbind(1)
    kept = (shares * (1 - (bottom - top) * (right - left) / size**2))[:, None]
    return mixed, targets * kept + targets[partners] * (1 - kept)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """The distributions float32 [N, K] that labels [N] stand for; those [N, K] stay as they are.

    Without torch's check of the values, which would wait for the device.
    """
    if labels.is_floating_point():
        return labels
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()
