from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vshift.config.data import Shapes
from vshift.data import shapes

# The first 300 training images of seed 0: every machine and every version draws these bytes.
PINNED = "7ad755fedb10ca21f852395fb2cb78dbc2d96f2935169b16d8c83617588150ca"


def test_the_drawings_are_pinned():
    assert hashlib.sha256(shapes.draw(0, "train", 300).tobytes()).hexdigest() == PINNED


def test_an_image_depends_on_seed_part_and_index_only():
    few, many = shapes.draw(0, "train", 130), shapes.draw(0, "train", 350)
    assert np.array_equal(few, many[:130])
    assert not np.array_equal(few, shapes.draw(1, "train", 130))
    assert not np.array_equal(few, shapes.draw(0, "test", 130))


def test_no_image_is_drawn_twice():
    images = shapes.draw(0, "train", 500)
    assert len({image.tobytes() for image in images}) == 500


@pytest.mark.parametrize("count", [1, 10, 99, 101])
def test_any_number_of_images(count):
    images = shapes.draw(3, "test", count)
    assert images.shape == (count, 32, 32, 3)
    assert images.dtype == np.uint8


def test_classes_are_balanced():
    assert np.bincount(shapes.labels(200)).tolist() == [20] * 10
    assert len(shapes.CLASSES) == 10


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_mirrored_figure_is_the_same_figure(name):
    v, u = np.mgrid[-1.4:1.4:57j, -1.4:1.4:57j]
    distance = shapes.distance(name, u, v)
    np.testing.assert_allclose(distance, shapes.distance(name, -u, v), atol=1e-12)
    inside = (distance < 0).mean() * 2.8**2
    assert 0.7 < inside < 2.5  # areas near each other: size alone tells no class
    edge = np.abs(u).max()
    assert (distance[np.maximum(np.abs(u), np.abs(v)) == edge] > 0).all()


def test_images_use_the_range_of_bytes_without_clipping_much():
    images = shapes.draw(0, "train", 500)
    assert 90 < images.mean() < 165
    assert ((images == 0) | (images == 255)).mean() < 0.1


@pytest.mark.parametrize("name", ["square", "cross"])
def test_angles_are_those_of_the_drawn_edges(name):
    """Against the fourfold direction of the pixels' gradients, which disturbs the background."""
    figure, count = shapes.CLASSES.index(name), 3000
    images = shapes.draw(0, "train", count).mean(axis=3)[figure::10]
    rows, columns = np.gradient(images, axis=(1, 2))
    slopes = columns + 1j * rows
    strength = np.maximum(np.abs(slopes), 1e-9)
    seen = np.degrees(np.angle((slopes**4 / strength**2).sum(axis=(1, 2)))) / 4
    drawn = shapes.angles(0, "train", count)[figure::10, 0]
    assert np.corrcoef(seen, drawn)[0, 1] > 0.6
    assert np.median(np.abs(seen - drawn)) < 3


def test_angles_are_uniform_and_depend_on_seed_part_and_index_only():
    many = shapes.angles(0, "train", 5000)
    assert many.shape == (5000, 1)
    assert np.abs(many).max() < np.degrees(shapes.TURN)
    assert many.std() == pytest.approx(np.degrees(2 * shapes.TURN) / 12**0.5, rel=0.02)
    assert np.array_equal(shapes.angles(0, "train", 130), many[:130])
    assert not np.array_equal(shapes.angles(0, "test", 130), many[:130])


def test_figures_that_show_no_angle_are_left_out():
    chosen = shapes.turned_figures(20)
    assert chosen.tolist() == [
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        12,
        13,
        14,
        15,
        16,
        17,
        18,
        19,
        22,
        23,
        24,
        25,
    ]
    source = shapes.open_shapes(Shapes(name="shapes", target="angle", train=20, test=10))
    train, test = source.read(np.arange(0, 20, 2), np.arange(10))
    assert np.array_equal(train, shapes.draw(0, "train", 26)[chosen[::2]])
    assert len(test) == len(source.test_labels) == 10
