from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vshift.config.data import Patterns
from vshift.data import Description, describe, load, patterns

# The first 300 training images of seed 0: every machine and every version draws these bytes.
PINNED = "be995e1fbf4f0c811e0030dbd5c6be32445c5980a54ec8e7ac10eb9ac5c237c6"


def test_the_drawings_are_pinned():
    assert hashlib.sha256(patterns.draw(0, "train", 300).tobytes()).hexdigest() == PINNED


def test_an_image_depends_on_seed_part_and_index_only():
    few, many = patterns.draw(0, "train", 130), patterns.draw(0, "train", 350)
    assert np.array_equal(few, many[:130])
    assert not np.array_equal(few, patterns.draw(1, "train", 130))
    assert not np.array_equal(few, patterns.draw(0, "test", 130))
    assert len({image.tobytes() for image in many}) == 350


def test_each_class_shows_its_pattern_moved_to_sixteen_places():
    """Against correlations by Fourier transforms, which know nothing of how images are drawn."""
    images = patterns.draw(0, "test", 400).astype(float) - 128
    spectra = np.fft.fft2(images, axes=(1, 2))

    def moves(of: int, by: int) -> NDArray[np.float64]:
        """Correlation of two images over all 16 × 16 moves, of colours together."""
        product = spectra[of] * spectra[by].conj()
        norm = np.linalg.norm(images[of]) * np.linalg.norm(images[by])
        return np.fft.ifft2(product, axes=(0, 1)).real.sum(-1) / norm

    places = set()
    for i in range(10, 400):
        best = moves(i, i % 10)
        down, right = np.unravel_index(best.argmax(), best.shape)
        places.add(((down + 3) % 16, (right + 3) % 16))
        assert best.max() > 0.6
        assert moves(i, (i + 1) % 10).max() < 0.4
    assert len(places) > 16
    assert max(max(place) for place in places) == 6  # a move of −3 to 3 between two images


def test_no_mean_colour_tells_a_pattern():
    images = patterns.draw(0, "train", 2000).astype(float)
    assert images.min() > 0
    assert images.max() < 255  # nothing is clipped
    means = np.stack([images[label::10].mean((0, 1, 2)) for label in range(10)])
    assert np.ptp(means) < 1


def test_patterns_load_without_augmentation():
    data = load(Patterns(name="patterns", train=100, test=40, validation=20))
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 40)
    assert data.train.labels.bincount().tolist() == [8] * 10
    assert data.train.images.numpy().tolist() == patterns.draw(0, "train", 100)[:80].tolist()
    assert describe(Patterns(name="patterns")) == Description(10, 3, 16)
    augment = Patterns(name="patterns").augment
    assert (augment.crop, augment.flip) == (0, False)
