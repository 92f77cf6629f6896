from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gpu import no_synchronization
from vshift.config.data import Augment
from vshift.data import Part, Stream, epoch_plan, plain_stream, train_stream
from vshift.data.images import image_set

# What torch's CPU generator gives for 8 images, crop 4 and seed 1.
PINNED_ORDER = [5, 4, 2, 6, 7, 3, 1, 0]
PINNED_FLIPS = [0, 0, 1, 0, 0, 0, 1, 1]
PINNED_OFFSETS = [0, 3, 6, 2, 7, 6, 6, 8, 7, 6, 0, 7, 8, 8, 4, 5]
AUGMENT = Augment(crop=2, flip=True)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def part(count=11, size=6, channels=3) -> Part:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, size, size, channels), np.uint8)
    return Part(torch.from_numpy(images), torch.arange(count) * 10)


def slow_epoch(part, mean, std, crop, flip, seed):
    """The same epoch pixel by pixel: pad with black, normalise, cut out, mirror."""
    plan = epoch_plan(len(part), Augment(crop=crop, flip=flip), seed)
    _, size, _, channels = part.images.shape
    for place in range(len(part)):
        image = part.images[plan.order[place]].double().numpy()
        padded = np.zeros((size + 2 * crop, size + 2 * crop, channels))
        padded[crop : crop + size, crop : crop + size] = image
        top, left = plan.offsets[place].tolist()
        out = np.zeros((channels, size, size))
        for c in range(channels):
            for y in range(size):
                for x in range(size):
                    source = size - 1 - x if plan.flips[place] else x
                    value = padded[top + y, left + source, c] / 255
                    out[c, y, x] = (value - float(mean[c])) / float(std[c])
        yield out, int(part.labels[plan.order[place]])


@pytest.mark.parametrize(
    ("crop", "flip"), [(0, False), (2, False), (0, True), (2, True), (9, True)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_epoch_is_the_slow_reference(crop, flip, channels):
    data, mean, std = part(channels=channels), MEAN[:channels], STD[:channels]
    stream = Stream(data, mean, std, 4, Augment(crop=crop, flip=flip))
    batches = list(stream.epoch(seed=5))
    expected = list(slow_epoch(data, mean, std, crop, flip, seed=5))
    images = torch.cat([images for images, _ in batches])
    np.testing.assert_allclose(images.numpy(), [image for image, _ in expected], atol=2e-6)
    assert torch.cat([labels for _, labels in batches]).tolist() == [label for _, label in expected]


def test_batches_are_channels_last_floats_and_the_last_one_is_kept():
    stream = Stream(part(), MEAN, STD, 4, AUGMENT)
    batches = list(stream.epoch(0))
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    assert stream.steps == len(batches)
    for images, labels in batches:
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def test_a_batch_as_large_as_the_set_is_one_step():
    assert Stream(part(8), MEAN, STD, 8).steps == 1
    assert Stream(part(8), MEAN, STD, 100).steps == 1


def test_every_epoch_is_another_permutation_and_every_seed_the_same():
    def order(seed):
        stream = Stream(part(50), MEAN, STD, 7, AUGMENT)
        return torch.cat([labels for _, labels in stream.epoch(seed)]).tolist()

    assert sorted(order(1)) == sorted(order(2)) == [10 * i for i in range(50)]
    assert order(1) == order(1)
    assert order(1) != order(2)


def test_crop_and_flip_are_each_turned_off_without_changing_the_rest():
    full = epoch_plan(100, Augment(crop=4, flip=True), seed=3)
    plain = epoch_plan(100, Augment(crop=0, flip=False), seed=3)
    assert full.order.equal(plain.order)
    assert full.flips.equal(epoch_plan(100, Augment(crop=0, flip=True), seed=3).flips)
    assert full.offsets.equal(epoch_plan(100, Augment(crop=4, flip=False), seed=3).offsets)
    assert not plain.offsets.any()
    assert not plain.flips.any()


def test_offsets_and_flips_are_uniform():
    plan = epoch_plan(90_000, Augment(crop=4, flip=True), seed=0)
    counts = torch.bincount(plan.offsets.flatten(), minlength=9)
    assert len(counts) == 9
    assert (counts - 20_000).abs().max() < 800  # 5.6 standard deviations
    assert abs(plan.flips.float().mean() - 0.5) < 0.01


def test_the_plan_is_pinned_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    plan = epoch_plan(8, Augment(crop=4, flip=True), seed=1)
    list(Stream(part(), MEAN, STD, 4, AUGMENT).epoch(0))
    assert torch.get_rng_state().equal(before)
    assert plan.order.tolist() == PINNED_ORDER
    assert plan.flips.int().tolist() == PINNED_FLIPS
    assert plan.offsets.flatten().tolist() == PINNED_OFFSETS


def test_plain_batches_are_in_order_and_normalised_like_the_others():
    data = part()
    stream = Stream(data, MEAN, STD, 4, AUGMENT)
    batches = list(stream.plain(5))
    assert [len(labels) for _, labels in batches] == [5, 5, 1]
    images = torch.cat([images for images, _ in batches]).numpy()
    raw = data.images.double().permute(0, 3, 1, 2).numpy() / 255
    shaped = (1, 3, 1, 1)
    expected = (raw - MEAN.double().numpy().reshape(shaped)) / STD.double().numpy().reshape(shaped)
    np.testing.assert_allclose(images, expected, atol=2e-6)


def test_streams_of_a_set():
    images = image_set("x", ("a", "b"), part(), None, part(4))
    assert train_stream(images, 4, AUGMENT).steps == 3
    test = plain_stream(images, images.test, 3)
    assert [len(labels) for _, labels in test.plain(3)] == [3, 1]


def test_the_padded_copy_is_made_once():
    stream = Stream(part(), MEAN, STD, 4, AUGMENT)
    assert stream.padded() is stream.padded()
    assert stream.padded().shape == (11, 10, 10, 3)
    assert Stream(part(), MEAN, STD, 4).padded().shape == (11, 6, 6, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [{}, {"cutout": 2, "mixup": 1.0, "cutmix": 1.0}], ids=bool)
def test_the_gpu_sees_the_same_batches_without_waiting(mixed):
    data, augment = part(50), Augment(crop=2, flip=True, **mixed)
    here = Stream(data, MEAN, STD, 7, augment, 500)
    there = Stream(data.to("cuda"), MEAN.cuda(), STD.cuda(), 7, augment, 500)
    there.padded()
    list(there.epoch(3))  # the first use of a kernel may wait
    with no_synchronization():
        batches = list(there.epoch(4))
    for (images, labels), (expected, right) in zip(batches, here.epoch(4), strict=True):
        torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=4e-6)
        torch.testing.assert_close(labels.cpu(), right, rtol=0, atol=1e-6 if mixed else 0)
