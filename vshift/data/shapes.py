"""The embedded set `shapes`: ten classes of 32×32 colour images drawn from a seed.

Image i of a part depends on (seed, part, i) alone and shows class i % 10, so a limit keeps the
same first images. Every machine draws the same bytes: the random numbers are PCG64's raw output,
whose stream numpy guarantees, and the drawing is float64 rounded to bytes at the very end.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]  # [n, 32, 32], or [n, 1, 1] for one number per image
Bytes = NDArray[np.uint8]

SIZE = 32
CHUNK = 100  # images drawn together: a multiple of ten whose planes stay in the processor's cache
NUMBERS = 96  # random numbers that an image may use, besides its noise
PARTS = {"train": 0, "test": 1}
NOISE = 0.05  # half the width of the triangular pixel noise, of full scale 1
CONTRAST = (0.5, 0.9)  # colour distance of the figure from its background
RADIUS = (9.0, 13.0)  # pixels
TURN = 0.25  # radians to either side
BLOBS = 1  # small discs behind the figure


def _disc(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v) - 0.85


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.22


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def _frame(u: Plane, v: Plane) -> Plane:
    frame: Plane = np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.65) - 0.2
    return frame


def _triangle(u: Plane, v: Plane) -> Plane:
    sides = 0.75**0.5 * np.abs(u) - 0.5 * v
    triangle: Plane = np.maximum(v, sides) - 0.5
    return triangle


def _star(u: Plane, v: Plane) -> Plane:
    """Five points at distance 1.1; the ray through a tip is the axis that all tips fold onto."""
    fifth = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(u, -v) + fifth, 2 * fifth) - fifth)
    rho = np.sqrt(u * u + v * v)
    tip, notch = 1.1, 0.45
    run, rise = tip - notch * np.cos(fifth), notch * np.sin(fifth)
    edge = (rho * np.cos(angle) - tip) * rise + rho * np.sin(angle) * run
    return np.asarray(edge / np.hypot(run, rise))


def _cross(u: Plane, v: Plane) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(a, b) - 0.28, np.maximum(a, b) - 0.95)


def _crescent(u: Plane, v: Plane) -> Plane:
    bite = np.sqrt(u * u + (v + 0.45) ** 2)
    return np.maximum(np.sqrt(u * u + v * v) - 0.95, 0.72 - bite)


def _heart(u: Plane, v: Plane) -> Plane:
    """A square with half discs on two neighbouring sides."""
    side = 0.48
    u, v = np.sqrt(0.5) * (u - v) + 0.15, np.sqrt(0.5) * (-u - v) + 0.15
    square = np.maximum(np.abs(u), np.abs(v)) - side
    right = np.sqrt((u - side) ** 2 + v * v) - side
    top = np.sqrt(u * u + (v - side) ** 2) - side
    return np.minimum(square, np.minimum(right, top))


def _bars(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(np.abs(v) - 0.52) - 0.24, np.abs(u) - 0.85)


# Signed distances to the outline in units of the radius, negative inside. No class is the mirror
# image of another, so flips keep the label.
FIGURES = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "bars": _bars,
}
CLASSES = tuple(FIGURES)


def labels(count: int) -> NDArray[np.int64]:
    """The classes of the first `count` images, [count]."""
    return np.arange(count, dtype=np.int64) % len(CLASSES)


def draw(seed: int, part: str, count: int) -> Bytes:
    """The first `count` images of a part ("train" or "test"), [count, 32, 32, 3]."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)

    def fill(chunk: int) -> None:
        kept = images[chunk * CHUNK : (chunk + 1) * CHUNK]
        kept[:] = _draw_chunk(seed, PARTS[part], chunk)[: len(kept)]

    with ThreadPoolExecutor() as pool:
        try:
            list(pool.map(fill, range(-(-count // CHUNK))))
        finally:  # after a signal, what is queued is not drawn
            pool.shutdown(wait=False, cancel_futures=True)
    return images


def _draw_chunk(seed: int, part: int, chunk: int) -> Bytes:
    random = np.random.PCG64(np.random.SeedSequence([seed, part, chunk]))
    raw = random.random_raw(CHUNK * NUMBERS).reshape(NUMBERS, CHUNK, 1, 1)
    numbers = iter((raw >> np.uint64(11)) * 2.0**-53)
    canvas = _background(numbers)
    _distract(canvas, numbers)
    _paint_figure(canvas, numbers)
    canvas += _noise(random)
    scaled = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(1, 2, 3, 0))


def _between(numbers: Iterator[Plane], low: float, high: float) -> Plane:
    return low + (high - low) * next(numbers)


def _colour(numbers: Iterator[Plane], low: float, high: float) -> Plane:
    return np.stack([_between(numbers, low, high) for _ in range(3)])


def _direction(numbers: Iterator[Plane]) -> tuple[Plane, Plane]:
    angle = _between(numbers, 0, 2 * np.pi)
    return np.cos(angle), np.sin(angle)


_Y, _X = (np.indices((SIZE, SIZE), np.float64) - (SIZE - 1) / 2)[:, None]


def _background(numbers: Iterator[Plane]) -> Plane:
    """A gradient between two near colours with faint waves, [3, n, 32, 32]."""
    first = _colour(numbers, 0.2, 0.8)
    slope = _colour(numbers, -0.3, 0.3)
    cos, sin = _direction(numbers)
    ramp = (cos * _X + sin * _Y) / SIZE
    cos, sin = _direction(numbers)
    frequency = _between(numbers, 0.2, 0.9)
    phase = _between(numbers, 0, 2 * np.pi)
    waves = np.sin((cos * _X + sin * _Y) * frequency + phase)
    canvas: Plane = first + slope * ramp + _colour(numbers, -0.09, 0.09) * waves
    return canvas


def _blend(canvas: Plane, distance: Plane, colour: Plane) -> None:
    """Paint where the signed distance in pixels is negative, with a soft edge one pixel wide."""
    cover = np.clip(0.5 - distance, 0, 1)
    canvas += cover * (colour - canvas)


def _distract(canvas: Plane, numbers: Iterator[Plane]) -> None:
    """Small discs behind the figure."""
    for _ in range(BLOBS):
        x, y = _between(numbers, -16, 16), _between(numbers, -16, 16)
        distance = np.sqrt((_X - x) ** 2 + (_Y - y) ** 2) - _between(numbers, 1, 3.5)
        _blend(canvas, distance, _colour(numbers, 0.1, 0.9))


def _paint_figure(canvas: Plane, numbers: Iterator[Plane]) -> None:
    """One figure per image, moved, turned, stretched and coloured at random."""
    radius = _between(numbers, *RADIUS)
    stretch = _between(numbers, 0.85, 1.18)
    room = np.maximum(15 - radius, 2)
    x, y = (_between(numbers, -1, 1) * room for _ in range(2))
    angle = _between(numbers, -TURN, TURN)
    cos, sin = np.cos(angle), np.sin(angle)
    u = (cos * (_X - x) + sin * (_Y - y)) / (radius * stretch)
    v = (cos * (_Y - y) - sin * (_X - x)) / (radius / stretch)
    shade = _shade(canvas, numbers) + _colour(numbers, -0.15, 0.15) * u
    for index, figure in enumerate(FIGURES.values()):
        own = slice(index, None, len(FIGURES))
        _blend(canvas[:, own], figure(u[own], v[own]) * radius[own], shade[:, own])


def _shade(canvas: Plane, numbers: Iterator[Plane]) -> Plane:
    """A colour at a given distance from the background's mean, on the roomier side of it."""
    behind = canvas.mean(axis=(2, 3), keepdims=True)
    step = _colour(numbers, 0.1, 1) * np.where(behind < 0.5, 1, -1)
    flip = np.where(_colour(numbers, 0, 1) < 0.25, -1, 1)  # some channels go the other way
    step *= flip / np.sqrt((step * step).sum(axis=0))
    return np.asarray(behind + step * _between(numbers, *CONTRAST))


def _noise(random: np.random.PCG64) -> Plane:
    """The difference of two random bytes per value: triangular, [3, n, 32, 32]."""
    count = 3 * CHUNK * SIZE * SIZE
    raw = random.random_raw(2 * count // 8).astype("<u8").view(np.uint8)
    pairs = raw.reshape(2, 3, CHUNK, SIZE, SIZE).astype(np.float64)
    noise: Plane = (pairs[0] - pairs[1]) * (NOISE / 255)
    return noise
