from __future__ import annotations

import numpy as np
import pytest
import torch

from vshift.config.data import Shapes
from vshift.data import Part, load
from vshift.data.images import STD_FLOOR, channel_statistics, image_set
from vshift.errors import DataError


def images(count, size=4, channels=3, width=None) -> Part:
    random = np.random.default_rng(count)
    pixels = random.integers(0, 256, (count, size, width or size, channels), np.uint8)
    return Part(torch.from_numpy(pixels), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_float64_numpy(channels):
    part = images(5000, channels=channels)  # more than one chunk
    mean, std = channel_statistics(part.images)
    values = part.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean.numpy(), values.mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(std.numpy(), values.std(axis=(0, 1, 2)), rtol=1e-7)
    assert mean.dtype == std.dtype == torch.float32


def test_statistics_do_not_depend_on_the_order():
    part = images(5000)
    mean, std = channel_statistics(part.images.flip(0))
    assert mean.equal(channel_statistics(part.images)[0])
    assert std.equal(channel_statistics(part.images)[1])


def test_constant_images_do_not_divide_by_zero():
    mean, std = channel_statistics(torch.full((3, 4, 4, 3), 51, dtype=torch.uint8))
    assert mean.tolist() == pytest.approx([0.2] * 3)
    assert std.tolist() == pytest.approx([STD_FLOOR] * 3)


def test_images_must_be_square():
    with pytest.raises(DataError, match=r"training images are 6×4 pixels.*square: set data\.size"):
        image_set("x", ("a",), images(2, width=6), None, images(2))


def test_parts_must_be_alike():
    with pytest.raises(DataError, match=r"test images are 5×5 .*training images 4×4.*data\.size"):
        image_set("x", ("a",), images(2), None, images(2, 5))


def test_labels_must_fit():
    part = images(2)
    with pytest.raises(DataError, match="are 2, and their labels 1"):
        image_set("x", ("a",), part, None, Part(part.images, part.labels[:1]))


def test_moving_a_set_moves_every_tensor():
    data = load(Shapes(name="shapes", train=20, test=10, validation=10)).to("meta")
    tensors = [data.mean, data.std]
    for part in (data.train, data.validation, data.test):
        tensors += [part.images, part.labels]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert load(Shapes(name="shapes", train=20, test=10)).to("cpu").validation is None
