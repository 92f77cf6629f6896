"""Image folders: <root>/<train>/<class>/ and <root>/<test>/<class>/, images at any depth.

Not torchvision.datasets.ImageFolder: `vshift check` reads the tree without importing torch, an
unreadable folder is an error instead of an empty one, hidden files are left out, and 16-bit images
and transparency are converted as people expect. Files are decoded in threads, all unreadable ones
are reported together, and the arrays are cached for the next start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from safetensors import safe_open
from safetensors.numpy import save_file

from vshift.cache import cache_folder, remove_old, replacing
from vshift.config.data import IMAGE_FORMATS, ImageFolder
from vshift.data.source import Indices, Labels, Pixels, Source
from vshift.errors import DataError
from vshift.text import first_lines, join_words, list_names

MAX_PIXELS = 64 * 1024 * 1024  # a larger image is taken for a decompression bomb
MAX_BYTES = 2**38  # of all images together: 256 GiB is a mistake
SHOWN = 5  # names in one message
CHUNK = 64  # files that a thread takes at a time
CACHED_FROM = 2000  # fewer images decode in about a second and are not worth a file
FORMAT = 1  # of the cached images; raise it when decoding changes

log = logging.getLogger("vshift.data")


def open_folder(config: ImageFolder) -> Source:
    """List the tree without opening an image; DataError if it is not one of images in classes."""
    root, train, _ = _parts(config)
    classes = class_names(train)
    train_files, train_labels = _list_images(root, config.train_folder, classes)
    test_files, test_labels = _list_images(root, config.test_folder, classes)

    def read(chosen: Indices, chosen_test: Indices) -> tuple[Pixels, Pixels]:
        names = [train_files[i] for i in chosen] + [test_files[i] for i in chosen_test]

        def decode() -> Pixels:
            return decode_all([root / name for name in names], config.size, config.channels)

        if len(names) <= CACHED_FROM:
            images = decode()
            return images[: len(chosen)], images[len(chosen) :]
        key = _cache_key(root, names, config.size, config.channels)
        file = cache_folder() / "images" / f"{key}.safetensors"
        cached = read_cached(file)
        if cached is None or len(cached) != len(names):
            cached = decode()
            write_cached(file, cached)
        return cached[: len(chosen)], cached[len(chosen) :]

    return Source(config.name, classes, train_labels, test_labels, read)


def describe_folder(config: ImageFolder) -> tuple[tuple[str, ...], int]:
    """(class names, side of the images) without listing the whole tree; opens one image."""
    _, train, _ = _parts(config)
    classes = class_names(train)
    first = train / classes[0]
    return classes, _side(first / _class_files(first)[0], config.size)


def _parts(config: ImageFolder) -> tuple[Path, Path, Path]:
    """(root, training folder, test folder); DataError if one is missing or their classes differ."""
    root = Path(config.root).expanduser().absolute()
    try:
        exists, is_folder = root.exists(), root.is_dir()
    except OSError as error:
        raise _cannot_list(root, error) from None
    if not exists:
        raise DataError(
            f"data.root: there is no folder {root}; correct data.root (a relative path starts "
            "in the folder where vshift runs)"
        )
    if not is_folder:
        raise DataError(
            f"data.root: {root} is a file; it must be a folder. Unpack an archive first, and "
            "name the folder that holds train and test"
        )
    for key in ("train_folder", "test_folder"):
        name = getattr(config, key)
        if not (root / name).is_dir():
            there = list_names(_folders_in(root), SHOWN) or "none"
            raise DataError(
                f"data.{key}: there is no folder `{name}` in {root} (folders there: {there}); "
                "images lie in <part>/<class>/, the parts named by data.train_folder and "
                "data.test_folder: where the classes are there, split them into train/ and test/"
            )
    train, test = root / config.train_folder, root / config.test_folder
    in_train, in_test = set(class_names(train)), set(class_names(test))
    if in_train != in_test:
        only = [
            f"only in {part.name}: {list_names(sorted(names), SHOWN)}"
            for part, names in ((train, in_train - in_test), (test, in_test - in_train))
            if names
        ]
        raise DataError(
            f"data.root: {train} and {test} must have the same class folders; " + "; ".join(only)
        )
    return root, train, test


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders of a part, sorted; DataError if there are fewer than two."""
    names = _folders_in(folder)
    if not names:
        raise DataError(
            f"data.root: {folder} has no class folders; put every class's images into a folder "
            f"of its own, {folder}/<class>/"
        )
    if len(names) == 1:
        raise DataError(
            f"data.root: {folder} has one class only, `{names[0]}`; training needs at least two "
            "class folders"
        )
    return tuple(names)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def image_files(folder: Path) -> list[str]:
    """The images in a folder and below it by their suffix: their paths from it, sorted.

    As text: a Path for each of 60,000 files took a second.

    Links to files are followed, and links to folders are not.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    for where, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(where, folder)
        prefix = "" if inside == os.curdir else f"{inside}{os.sep}"
        names += [
            prefix + name
            for name in files
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_FORMATS
        ]
    return sorted(names)


def _folders_in(folder: Path) -> list[str]:
    try:
        return subfolders(folder)
    except OSError as error:
        raise _cannot_list(folder, error) from None


def _list_images(root: Path, part: str, classes: tuple[str, ...]) -> tuple[list[str], Labels]:
    """The paths from `root` of a part's images, class by class, and their classes."""
    files = [_class_files(root / part / name) for name in classes]
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(names) for names in files])
    folders = [os.path.join(part, name, "") for name in classes]
    paths = [folder + name for folder, names in zip(folders, files, strict=True) for name in names]
    return paths, labels


def _class_files(folder: Path) -> list[str]:
    """A class's image files as paths from its folder, sorted; DataError if there are none."""
    try:
        files = image_files(folder)
    except OSError as error:
        raise _cannot_list(Path(error.filename), error) from None
    if not files:
        raise DataError(
            f"data.root: the class folder {folder} has no images "
            f"({', '.join(sorted(IMAGE_FORMATS))}); add some or remove the folder"
        )
    return files


def _cannot_list(folder: Path, error: OSError) -> DataError:
    reason = (error.strerror or str(error)).lower()
    return DataError(f"data.root: cannot list {folder}: {reason}; make it readable for you")


def _side(path: Path, size: int | None = None) -> int:
    """`size`, or an image's own side, from its header; DataError if unreadable or not square."""
    try:
        with _without_pillows_warning(), opened(path) as image:
            width, height = image.size
    except Exception as error:
        raise _unreadable([f"{path}: {reason_of(error)}"]) from None
    if size is None and width != height:
        raise DataError(
            f"data.root: {path} is {width}×{height} pixels, and images must be square; "
            "set data.size, for instance to 32, to resize all of them"
        )
    return size or width


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's image with only its header read.

    Raises:
        ValueError: it has too many pixels, or is no regular file: a pipe would be waited for.
        OSError: it cannot be read, or is in no format of IMAGE_FORMATS.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    with Image.open(path, formats=sorted(set(IMAGE_FORMATS.values()))) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}×{height} pixels are more than {MAX_PIXELS >> 20} Mi pixels")
        yield image


@contextmanager
def _without_pillows_warning() -> Iterator[None]:
    """MAX_PIXELS replaces Pillow's limit, which only warns. Not thread-safe: use it around."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_all(paths: Sequence[Path], size: int | None, channels: int) -> Pixels:
    """Decode files into one array, uint8 [n, size, size, channels].

    Without `size` the first image's is used; every image must have it, and it must be square.
    Raises DataError naming the files that cannot be read or have another size.
    """
    side = size or _side(paths[0])
    try:
        if len(paths) * side * side * channels > MAX_BYTES:
            raise MemoryError
        images = np.empty((len(paths), side, side, channels), np.uint8)
    except MemoryError:
        gigabytes = len(paths) * side * side * channels / 1e9
        raise DataError(
            f"data: {len(paths):,} images of {side}×{side} pixels would take {gigabytes:,.0f} GB "
            "of memory; set data.size, for instance to 32, or data.train_limit"
        ) from None

    def decode(start: int) -> list[str]:
        problems = []
        for i in range(start, min(start + CHUNK, len(paths))):
            try:
                image = decode_one(paths[i], size, channels)
            except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
                problems.append(f"{paths[i]}: {reason_of(error)}")
                continue
            height, width, _ = image.shape
            if (height, width) != (side, side):
                raise DataError(
                    f"data.root: images differ in size: {paths[0]} is {side}×{side} pixels and "
                    f"{paths[i]} is {width}×{height}; set data.size, for instance to 32, to resize "
                    "all of them"
                )
            images[i] = image
        return problems

    with _without_pillows_warning(), ThreadPoolExecutor() as pool:
        try:
            problems = list(chain.from_iterable(pool.map(decode, range(0, len(paths), CHUNK))))
        finally:  # after a signal, what is queued is not decoded
            pool.shutdown(wait=False, cancel_futures=True)
    if problems:
        raise _unreadable(problems)
    return images


def decode_one(path: Path, size: int | None, channels: int) -> Pixels:
    """Decode a file as uint8 [H, W, channels]; the first frame of an animation.

    16 bits are scaled to 8, and transparent pixels laid on black, as people expect.
    If `size` is given the image is resized to size×size, without keeping proportions, with
    antialiasing.
    """
    with opened(path) as read:
        image: Image.Image = read
        if image.mode.startswith("I"):  # Pillow's own conversion would cut everything above 255
            image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("floating-point pixels have no agreed range; save it with 8 bits")
        elif image.has_transparency_data:
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image = Image.alpha_composite(black, image.convert("RGBA"))
        plain = image.convert("RGB" if channels == 3 else "L")
    if size is not None and plain.size != (size, size):
        plain = plain.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(plain).reshape(plain.height, plain.width, channels)


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in {join_words(sorted(set(IMAGE_FORMATS.values())), 'or')}"
    return (str(error) or type(error).__name__).splitlines()[0]


def _unreadable(problems: list[str]) -> DataError:
    count = "an image" if len(problems) == 1 else f"{len(problems)} images"
    lines = "\n  ".join(first_lines(problems, SHOWN))
    return DataError(f"data.root: cannot read {count}; replace or delete:\n  {lines}")


def _cache_key(root: Path, names: list[str], size: int | None, channels: int) -> str:
    """A hash of the files' paths from `root`, sizes and times and of how they are decoded."""
    digest = hashlib.sha256(json.dumps([FORMAT, str(root.resolve()), size, channels]).encode())
    for name in names:
        path = os.path.join(root, name)
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"data.root: cannot read {path}: {error.strerror}") from None
        entry = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def read_cached(path: Path) -> Pixels | None:
    """The images of a cache file; None if there is none or it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            images: Pixels = file.get_tensor("images")
            intact = (file.metadata() or {}).get("crc32") == _checksum(images)
        return images if intact else None
    except Exception:  # whatever is wrong with a cache file, the images are decoded again
        return None


def write_cached(path: Path, images: Pixels) -> None:
    """Write a cache file, whole or not at all; a failure is one line of warning, not an error."""
    try:
        remove_old(path.parent, f"{path.stem}*.tmp")
        with replacing(path) as temporary:
            save_file({"images": images}, temporary, metadata={"crc32": _checksum(images)})
    except Exception as error:  # safetensors has its own exception for a full disk
        log.warning(
            "cannot cache the decoded images in %s (%s); the next start decodes them again. "
            "VSHIFT_CACHE names another folder.",
            path.parent,
            error,
        )


def _checksum(images: Pixels) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(images).data):08x}"
