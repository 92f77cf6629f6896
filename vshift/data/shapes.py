"""The embedded set `shapes`: ten classes of 32×32 colour images drawn from a seed.

Image i of a part depends on (seed, part, i) alone and shows class i % 10, so a limit keeps the
same first images. Its figure is turned by an angle, which `target: angle` asks for: see `angles`.
Every machine draws the same bytes: the random numbers are PCG64's raw output,
whose stream numpy guarantees, and the drawing is float64 rounded to bytes at the very end.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vshift.config.data import Shapes
from vshift.data.source import Indices, Numbers, Source

Plane = NDArray[np.float64]  # [n, 32, 32], or [n, 1, 1] for one number per image
Bytes = NDArray[np.uint8]

SIZE = 32
CHUNK = 100  # images drawn together: a multiple of ten whose planes stay in the processor's cache
NUMBERS = 96  # random numbers that an image may use, besides its noise
ANGLE = 23  # which of them turns the figure
PARTS = {"train": 0, "test": 1}
NOISE = 0.05  # half the width of the triangular pixel noise, of full scale 1
CONTRAST = (0.5, 0.9)  # colour distance of the figure from its background
RADIUS = (9.0, 13.0)  # pixels
TURN = 0.25  # radians to either side
ROUND = 2  # the first classes, disc and ring: turning does not change their outline
BLOBS = 1  # small discs in the background


CLASSES = ("disc", "ring", "square", "frame", "triangle", "star", "cross", "crescent", "heart",
    "bars")  # fmt: skip


def distance(figure: str, u: Plane, v: Plane) -> Plane:
    """Signed distance of a point to a figure's outline in units of the radius, negative inside.

    No class is the mirror image of another, so flips keep the label.
    """
    rho, across = np.sqrt(u * u + v * v), np.maximum(np.abs(u), np.abs(v))
    result: Plane
    match figure:
        case "disc":
            result = rho - 0.85
        case "ring":
            result = np.abs(rho - 0.72) - 0.22
        case "square":
            result = across - 0.75
        case "frame":
            result = np.abs(across - 0.65) - 0.2
        case "triangle":
            result = np.maximum(v, 0.75**0.5 * np.abs(u) - 0.5 * v) - 0.5
        case "star":
            # Five points at distance 1.1; the ray through a tip is the axis that all fold onto.
            fifth, tip, notch = np.pi / 5, 1.1, 0.45
            angle = np.abs(np.mod(np.arctan2(u, -v) + fifth, 2 * fifth) - fifth)
            run, rise = tip - notch * np.cos(fifth), notch * np.sin(fifth)
            edge = (rho * np.cos(angle) - tip) * rise + rho * np.sin(angle) * run
            result = edge / np.hypot(run, rise)
        case "cross":
            result = np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.28, across - 0.95)
        case "crescent":
            result = np.maximum(rho - 0.95, 0.72 - np.sqrt(u * u + (v + 0.45) ** 2))
        case "heart":
            # A square with half discs on two neighbouring sides.
            side = 0.48
            u, v = np.sqrt(0.5) * (u - v) + 0.15, np.sqrt(0.5) * (-u - v) + 0.15
            square = np.maximum(np.abs(u), np.abs(v)) - side
            right = np.sqrt((u - side) ** 2 + v * v) - side
            top = np.sqrt(u * u + (v - side) ** 2) - side
            result = np.minimum(square, np.minimum(right, top))
        case _:  # bars
            result = np.maximum(np.abs(np.abs(v) - 0.52) - 0.24, np.abs(u) - 0.85)
    return result


def open_shapes(config: Shapes) -> Source:
    """The set with its labels, classes or angles, and its images still to be drawn."""

    def draw_some(part: str, chosen: Indices) -> Bytes:
        count = int(chosen.max()) + 1
        images = draw(config.seed, part, count)
        return images if count == len(chosen) else images[chosen]

    if config.target == "angle":
        train, test = turned_figures(config.train), turned_figures(config.test)
        return Source(
            config.name,
            (),
            angles(config.seed, "train", int(train[-1]) + 1)[train],
            angles(config.seed, "test", int(test[-1]) + 1)[test],
            lambda some, some_test: (
                draw_some("train", train[some]), draw_some("test", test[some_test])
            ),
            mirror_negates=True,
        )  # fmt: skip
    return Source(
        config.name,
        CLASSES,
        labels(config.train),
        labels(config.test),
        lambda some, some_test: (draw_some("train", some), draw_some("test", some_test)),
    )


def turned_figures(count: int) -> Indices:
    """The first `count` images whose figure is neither disc nor ring."""
    shown = len(CLASSES) - ROUND
    places = np.arange(count, dtype=np.int64)
    return places // shown * len(CLASSES) + ROUND + places % shown


def angles(seed: int, part: str, count: int) -> Numbers:
    """By how many degrees the figures of the first `count` images are turned clockwise, [count, 1].

    A plain number and no sine and cosine: a figure looks the same after half a turn (bars), a third
    (triangle), a quarter (square, frame, cross), a fifth (star) or only a whole one, and all of
    them are turned by less than half of the least of these to either side, ±14.3° of ±36°: no two
    angles of a figure look alike, and none wraps around. Disc and ring have no angle. All figures
    are symmetric, so the mirror image of one is turned by the negative.
    """
    chunks = range(-(-count // CHUNK))
    turns = [_numbers(generator(seed, PARTS[part], chunk))[ANGLE].ravel() for chunk in chunks]
    drawn = _between(iter([np.concatenate(turns)[:count, None]]), -TURN, TURN)
    return np.degrees(drawn).astype(np.float32)


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
    random = generator(seed, part, chunk)
    numbers = iter(_numbers(random))
    canvas = _background(numbers)
    _paint_figure(canvas, numbers)
    # The difference of two random bytes per value: triangular noise.
    raw = random.random_raw(2 * canvas.size // 8).astype("<u8").view(np.uint8)
    first, second = raw.reshape(2, *canvas.shape).astype(np.float64)
    canvas += (first - second) * (NOISE / 255)
    scaled = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(1, 2, 3, 0))


def generator(seed: int, part: int, chunk: int) -> np.random.PCG64:
    """The random numbers of a chunk of images: their raw output is the same everywhere."""
    return np.random.PCG64(np.random.SeedSequence([seed, part, chunk]))


def _numbers(random: np.random.PCG64) -> Plane:
    """Numbers from 0 to 1 for every image of a chunk, [NUMBERS, CHUNK, 1, 1]."""
    raw = random.random_raw(CHUNK * NUMBERS).reshape(NUMBERS, CHUNK, 1, 1)
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53, np.float64)


def _between(numbers: Iterator[Plane], low: float, high: float) -> Plane:
    return low + (high - low) * next(numbers)


def _colour(numbers: Iterator[Plane], low: float, high: float) -> Plane:
    return np.stack([_between(numbers, low, high) for _ in range(3)])


def _direction(numbers: Iterator[Plane]) -> tuple[Plane, Plane]:
    angle = _between(numbers, 0, 2 * np.pi)
    return np.cos(angle), np.sin(angle)


_Y, _X = (np.indices((SIZE, SIZE), np.float64) - (SIZE - 1) / 2)[:, None]


def _background(numbers: Iterator[Plane]) -> Plane:
    """A gradient between two near colours with faint waves and small discs, [3, n, 32, 32]."""
    first = _colour(numbers, 0.2, 0.8)
    slope = _colour(numbers, -0.3, 0.3)
    cos, sin = _direction(numbers)
    ramp = (cos * _X + sin * _Y) / SIZE
    cos, sin = _direction(numbers)
    frequency = _between(numbers, 0.2, 0.9)
    phase = _between(numbers, 0, 2 * np.pi)
    waves = np.sin((cos * _X + sin * _Y) * frequency + phase)
    canvas: Plane = first + slope * ramp + _colour(numbers, -0.09, 0.09) * waves
    for _ in range(BLOBS):
        x, y = _between(numbers, -16, 16), _between(numbers, -16, 16)
        blob = np.sqrt((_X - x) ** 2 + (_Y - y) ** 2) - _between(numbers, 1, 3.5)
        _blend(canvas, blob, _colour(numbers, 0.1, 0.9))
    return canvas


def _blend(canvas: Plane, distance: Plane, colour: Plane) -> None:
    """Paint where the signed distance in pixels is negative, with a soft edge one pixel wide."""
    cover = np.clip(0.5 - distance, 0, 1)
    canvas += cover * (colour - canvas)


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
    # A colour at a given distance from the background's mean, on the roomier side of it.
    behind = canvas.mean(axis=(2, 3), keepdims=True)
    step = _colour(numbers, 0.1, 1) * np.where(behind < 0.5, 1, -1)
    flip = np.where(_colour(numbers, 0, 1) < 0.25, -1, 1)  # some channels go the other way
    step *= flip / np.sqrt((step * step).sum(axis=0))
    shade = behind + step * _between(numbers, *CONTRAST)
    shade = shade + _colour(numbers, -0.15, 0.15) * u
    for index, figure in enumerate(CLASSES):
        own = slice(index, None, len(CLASSES))
        _blend(canvas[:, own], distance(figure, u[own], v[own]) * radius[own], shade[:, own])
