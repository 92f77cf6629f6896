"""The embedded set `patterns`: ten random patterns of 16×16 colour pixels, hidden in noise.

Image i of a part depends on (seed, part, i) alone and shows pattern i % 10, moved by up to three
pixels down and right; what leaves comes in at the opposite edge. All is drawn in integers from
PCG64's raw output, so every machine draws the same bytes.

A pattern is as often bright as dark in each colour: no mean colour tells it, and a network must
find its parts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vshift.config.data import Patterns
from vshift.data.shapes import PARTS, generator, labels
from vshift.data.source import Source

Integers = NDArray[np.int64]

SIZE = 16
CLASSES = tuple(f"pattern {i}" for i in range(10))
SHIFTS = 4  # to either direction; a power of two, so that all are drawn as often
CONTRAST = 40  # of a pattern's pixel to the grey of 128
NOISE = 4  # the triangular pixel noise is the difference of two random bytes, divided by this
CHUNK = 100  # images drawn together: a multiple of ten


def open_patterns(config: Patterns) -> Source:
    """The set with its classes, and its images still to be drawn."""
    return Source(
        config.name,
        CLASSES,
        labels(config.train),
        labels(config.test),
        lambda some, some_test: (
            draw(config.seed, "train", int(some.max()) + 1)[some],
            draw(config.seed, "test", int(some_test.max()) + 1)[some_test],
        ),
    )


def draw(seed: int, part: str, count: int) -> NDArray[np.uint8]:
    """The first `count` images of a part ("train" or "test"), [count, 16, 16, 3]."""
    patterns = _patterns(seed)
    chunks = [_draw_chunk(patterns, seed, part, chunk) for chunk in range(-(-count // CHUNK))]
    return np.concatenate(chunks)[:count]


def _patterns(seed: int) -> Integers:
    """+1 in a random half of every colour's pixels and −1 in the other, [10, 16, 16, 3]."""
    raw = generator(seed, len(PARTS), 0).random_raw(len(CLASSES) * 3 * SIZE**2)
    ranks = raw.reshape(len(CLASSES), 3, SIZE**2).argsort(axis=2, kind="stable")
    signs = np.where(ranks < SIZE**2 // 2, 1, -1).reshape(len(CLASSES), 3, SIZE, SIZE)
    return np.ascontiguousarray(signs.transpose(0, 2, 3, 1), np.int64)


def _draw_chunk(patterns: Integers, seed: int, part: str, chunk: int) -> NDArray[np.uint8]:
    random = generator(seed, PARTS[part], chunk)
    down, right = (random.random_raw(2 * CHUNK) % SHIFTS).astype(np.int64).reshape(2, CHUNK, 1, 1)
    rows, columns = np.indices((SIZE, SIZE))
    shown = labels(CHUNK)[:, None, None]
    images = patterns[shown, (rows - down) % SIZE, (columns - right) % SIZE]
    raw = random.random_raw(2 * images.size // 8).astype("<u8").view(np.uint8)
    first, second = raw.reshape(2, *images.shape).astype(np.int64)
    pixels: NDArray[np.uint8] = (128 + CONTRAST * images + (first - second) // NOISE).astype("u1")
    return pixels
