"""Cutout, mixup and CutMix against the formulas of their papers, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.data.test_stream import MEAN, STD, part
from vshift.config.data import Augment
from vshift.data import Stream, epoch_plan
from vshift.data.mixing import draw_boxes, draw_mixtures, inside
from vshift.data.stream import Plan

COUNT, BATCH, SIZE, CLASSES = 11, 4, 6, 3


def stream(**augment) -> Stream:
    data = part(COUNT, SIZE)
    data = type(data)(data.images, torch.arange(COUNT) % CLASSES)
    return Stream(data, MEAN, STD, BATCH, Augment(crop=1, **augment), CLASSES)


def draws(batches, seed=0, size=32, **augment):
    generator = torch.Generator().manual_seed(seed)
    return draw_mixtures(batches, 1, Augment(**augment), size, generator)


@pytest.mark.parametrize(
    "augment", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
)
@pytest.mark.parametrize("cutout", [0, 4])
def test_an_epoch_is_the_slow_reference(augment, cutout):
    """x̃ = w·x + (1 − w)·x[partner], pixel by pixel in float64, and the target by the mean of w."""
    mixed, plain = stream(cutout=cutout, **augment), stream()
    plan = mixed.plan(7)
    images = torch.cat([images for images, _ in plain.epoch(7)]).double().numpy()
    labels = torch.cat([labels for _, labels in plain.epoch(7)]).numpy()
    assert plan.holes is None or plan.holes.shape == (COUNT, 4)
    if plan.holes is not None:
        for image, (top, bottom, left, right) in zip(images, plan.holes.tolist(), strict=True):
            image[:, top:bottom, left:right] = 0
    partners, shares, boxes = plan.partners, plan.shares, plan.boxes
    found = list(mixed.epoch(7))
    assert [len(targets) for _, targets in found] == [4, 4, 3]
    got = torch.cat([images for images, _ in found]).numpy()
    targets = torch.cat([targets for _, targets in found]).numpy()
    for place in range(COUNT):
        other = place // BATCH * BATCH + int(partners[place])
        weight = np.full((SIZE, SIZE), float(shares[place]))
        top, bottom, left, right = boxes[place].tolist()
        weight[top:bottom, left:right] = 0
        wanted = weight * images[place] + (1 - weight) * images[other]
        np.testing.assert_allclose(got[place], wanted, atol=1e-5)
        target = np.zeros(CLASSES)
        target[labels[place]] += weight.mean()
        target[labels[other]] += 1 - weight.mean()
        np.testing.assert_allclose(targets[place], target, atol=1e-6)


def test_numbers_are_mixed_as_they_are():
    data = part(COUNT, SIZE)
    data = type(data)(data.images, torch.arange(COUNT)[:, None] * torch.tensor([1.0, -2.0]))
    mixed = Stream(data, MEAN, STD, BATCH, Augment(mixup=1.0))
    plan = mixed.plan(3)
    targets = torch.cat([targets for _, targets in mixed.epoch(3)])
    for place in range(COUNT):
        other = place // BATCH * BATCH + int(plan.partners[place])
        share = float(plan.shares[place])
        wanted = share * int(plan.order[place]) + (1 - share) * int(plan.order[other])
        assert targets[place].tolist() == pytest.approx([wanted, -2 * wanted], abs=1e-5)


def test_partners_are_a_permutation_of_their_batch():
    plan = epoch_plan(1000, Augment(mixup=1.0), 0, batch_size=128, size=8)
    for partners in torch.split(plan.partners, 128):
        assert sorted(partners.tolist()) == list(range(len(partners)))


def test_a_batch_has_one_weight_and_one_box():
    plan = epoch_plan(256, Augment(mixup=1.0, cutmix=1.0), 0, batch_size=64, size=16)
    for of in (plan.shares, plan.boxes):
        for batch in torch.split(of, 64):
            assert len(batch.unique(dim=0)) == 1


def test_what_is_turned_off_draws_nothing_and_what_is_on_changes_no_other_draw():
    plain = epoch_plan(100, Augment(), 3)
    assert list(plain[3:]) == [None] * 4
    both = epoch_plan(100, Augment(cutout=4, mixup=1.0), 3, batch_size=10, size=8)
    assert all(a.equal(b) for a, b in zip(plain[:3], both[:3], strict=True))
    assert epoch_plan(100, Augment(cutout=4), 3, 10, 8).holes.equal(both.holes)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_are_from_the_beta_distribution(alpha):
    """Mean ½ and variance 1/(4(2α + 1)), within four standard errors of 20,000 draws."""
    _, shares, boxes = draws(20_000, mixup=alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=4 * (variance / 20_000) ** 0.5)
    assert float(shares.double().var()) == pytest.approx(variance, rel=0.05)
    assert not (boxes[:, 1] - boxes[:, 0]).any()


def test_cutmix_boxes_are_those_of_the_authors_code():
    """rand_bbox of github.com/clovaai/CutMix-PyTorch: half sides round down, cut at the borders.

    With α = 1 the share 1 − λ is uniform, and a box that no border cuts has the nearest even side.
    """
    _, shares, boxes = draws(20_000, cutmix=1.0)
    top, bottom, left, right = boxes.unbind(1)
    assert (shares == 1).all()
    assert (top >= 0).all()
    assert (bottom <= 32).all()
    whole = (top > 0) & (bottom < 32) & (left > 0) & (right < 32)
    assert ((bottom - top) == (right - left))[whole].all()
    assert ((bottom - top) % 2 == 0)[whole].all()
    # E over a uniform share r² of the side, and over centres, of the pixels that are left of it.
    sides = np.sqrt((np.arange(20_000) + 0.5) / 20_000) * 32
    half = sides.astype(int) // 2
    centres = np.arange(32)
    lengths = [np.minimum(centres + h, 32) - np.maximum(centres - h, 0) for h in range(17)]
    area = np.mean([lengths[h].mean() ** 2 for h in half])
    assert float(((bottom - top) * (right - left)).double().mean()) == pytest.approx(area, rel=0.03)


def test_with_both_half_of_the_batches_are_cut_and_a_share_is_left_alone():
    _, shares, boxes = draws(8000, mixup=1.0, cutmix=1.0, mix_probability=0.5)
    is_cut = boxes[:, 1] > boxes[:, 0]
    is_mixed = shares < 1
    assert not (is_cut & is_mixed).any()
    assert float(is_mixed.float().mean()) == pytest.approx(0.25, abs=0.02)
    # A small box may be empty: side 32·√(1 − λ) below 2 has a share of 1/256 of them.
    assert float(is_cut.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_cutout_erases_a_square_around_a_uniform_pixel():
    boxes = draw_boxes(50_000, 8, 32, torch.Generator().manual_seed(0))
    assert set((boxes[:, 1] - boxes[:, 0]).tolist()) == {4, 5, 6, 7, 8}
    erased = inside(boxes[:5000], 32).float().mean((0, 1))
    # A pixel far from the border is erased by 8 × 8 of the 32 × 32 centres, a corner by 5 × 5.
    assert float(erased[8:24, 8:24].mean()) == pytest.approx(64 / 1024, rel=0.05)
    assert float(erased[0, 0]) == pytest.approx(25 / 1024, abs=4 * (25 / 1024 / 5000) ** 0.5)


def test_mixed_batches_are_channels_last_floats():
    for images, targets in stream(cutout=2, mixup=1.0, cutmix=1.0).epoch(0):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.dtype == targets.dtype == torch.float32
        assert targets.sum(1).tolist() == pytest.approx([1.0] * len(targets))


def test_a_plan_is_mapped_tensor_by_tensor():
    plan = epoch_plan(8, Augment(cutout=2), 0, 4, 8)
    assert isinstance(plan.at(slice(2, 5)), Plan)
    assert plan.at(torch.tensor([1, 3])).holes.equal(plan.holes[[1, 3]])
    assert plan.at(slice(0, 2)).partners is None
