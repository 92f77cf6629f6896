"""Image files → uint8 arrays, in threads; all unreadable files are reported together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vshift.errors import DataError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64 * 1024 * 1024  # a larger image is taken for a decompression bomb
MAX_BYTES = 2**38  # of all images together, 256 GiB: beyond it nobody means it
SHOWN = 5  # unreadable files named in one message
BUNCH = 64  # files a thread takes at a time


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header; DataError if it cannot be read."""
    try:
        with _own_limit(), _opened(path) as image:
            return image.size
    except Exception as error:
        raise _unreadable([f"{path}: {_reason(error)}"]) from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's image, of which the header is read; ValueError for one of too many pixels."""
    with Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}×{height} pixels are more than {MAX_PIXELS >> 20} Mi pixels")
        yield image


@contextmanager
def _own_limit() -> Iterator[None]:
    """MAX_PIXELS instead of Pillow's higher limit, which only warns. Not in threads, but around."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_all(paths: Sequence[Path], size: int | None, channels: int) -> Pixels:
    """All files as one array, uint8 [n, size, size, channels].

    Without `size` the first image's is used; every image must have it, and it must be square.
    Raises DataError naming the files that cannot be read or have another size.
    """
    side = size or _common_side(paths[0])
    images = _room(len(paths), side, channels)

    def decode(start: int) -> list[str]:
        problems = []
        for i in range(start, min(start + BUNCH, len(paths))):
            try:
                images[i] = decode_one(paths[i], size, channels, side)
            except _OtherSizeError:
                raise
            except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
                problems.append(f"{paths[i]}: {_reason(error)}")
        return problems

    with _own_limit(), ThreadPoolExecutor() as pool:
        try:
            problems = list(chain.from_iterable(pool.map(decode, range(0, len(paths), BUNCH))))
        except _OtherSizeError as other:
            raise DataError(
                f"data.root: images differ in size: {paths[0]} is {side}×{side} pixels and "
                f"{other}; set data.size, for instance to 32, to resize all of them"
            ) from None
        finally:  # a signal may come while paths are handed in: what waits is not decoded
            pool.shutdown(wait=False, cancel_futures=True)
    if problems:
        raise _unreadable(problems)
    return images


def _room(count: int, side: int, channels: int) -> Pixels:
    """An empty array for so many images; DataError if no memory could hold them."""
    try:
        if count * side * side * channels > MAX_BYTES:
            raise MemoryError
        return np.empty((count, side, side, channels), np.uint8)
    except MemoryError:
        gigabytes = count * side * side * channels / 1e9
        raise DataError(
            f"data: {count:,} images of {side}×{side} pixels would take {gigabytes:,.0f} GB of "
            "memory; set data.size, for instance to 32, or data.train_limit"
        ) from None


class _OtherSizeError(Exception):
    """An image that has another size than the first one, where no size is set."""


def _common_side(path: Path) -> int:
    width, height = image_size(path)
    if width != height:
        raise DataError(
            f"data.root: {path} is {width}×{height} pixels, and images must be square; "
            "set data.size, for instance to 32, to resize all of them"
        )
    return width


def decode_one(path: Path, size: int | None, channels: int, side: int | None = None) -> Pixels:
    """One file as uint8 [H, W, channels]; the first frame of an animation.

    Resized, without keeping proportions, to size×size with antialiasing if `size` is given.
    """
    with _opened(path) as image:
        width, height = image.size
        if size is None and side is not None and (width, height) != (side, side):
            raise _OtherSizeError(f"{path} is {width}×{height}")
        plain = _eight_bit(image).convert("RGB" if channels == 3 else "L")
    if size is not None and plain.size != (size, size):
        plain = plain.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(plain).reshape(plain.height, plain.width, channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """A mode that converts to RGB and L as people expect: 16 bits scaled, alpha on black."""
    if image.mode.startswith("I"):  # Pillow's own conversion would cut everything above 255
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it with 8 bits")
    if not image.has_transparency_data:
        return image
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA"))


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return (str(error) or type(error).__name__).splitlines()[0]


def _unreadable(problems: list[str]) -> DataError:
    more = len(problems) - SHOWN
    lines = problems[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
    count = "an image" if len(problems) == 1 else f"{len(problems)} images"
    return DataError(f"data.root: cannot read {count}; replace or delete:\n  " + "\n  ".join(lines))
