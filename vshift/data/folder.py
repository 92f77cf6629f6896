"""Image folders: <root>/<train>/<class>/**/*.jpg and <root>/<test>/<class>/**/*.jpg."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vshift.config.schema import ImageFolder
from vshift.data import cache
from vshift.data.decode import decode_all
from vshift.data.source import Labels, Pixels, Source
from vshift.errors import DataError

SUFFIXES = frozenset(["jpg", "jpeg", "png", "bmp", "webp", "gif", "ppm", "tif", "tiff"])
CACHED_FROM = 2000  # fewer images decode in about a second; they are not worth a file
FORMAT = 1  # of the cached images; raise it when decoding changes


@dataclass(frozen=True)
class Tree:
    """One part's images: every class's files, sorted, relative to `folder`."""

    folder: Path
    files: dict[str, list[str]]

    def paths(self, chosen: Labels) -> list[Path]:
        """The files at these positions of all files in order."""
        names = [name for names in self.files.values() for name in names]
        return [self.folder / names[i] for i in chosen]

    @property
    def labels(self) -> Labels:
        counts = [len(names) for names in self.files.values()]
        return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def open_folder(config: ImageFolder) -> Source:
    """Lists the tree without opening an image; raises DataError for a tree that is not one."""
    root = root_folder(config)
    train, test = (_list_images(root / part) for part in part_names(root, config))

    def read(chosen: Labels, chosen_test: Labels) -> tuple[Pixels, Pixels]:
        kept = train.paths(chosen) + test.paths(chosen_test)
        images = _decode_cached(root, kept, config.size, config.channels)
        return images[: len(chosen)], images[len(chosen) :]

    return Source(config.name, tuple(train.files), train.labels, test.labels, read)


def first_image(config: ImageFolder) -> tuple[tuple[str, ...], Path]:
    """(class names, the first training image) without listing the whole tree."""
    root = root_folder(config)
    train, _ = part_names(root, config)
    classes = class_names(root / train)
    name = classes[0]
    return classes, root / train / name / _class_files(root / train / name)[0]


def root_folder(config: ImageFolder) -> Path:
    """The tree's absolute root; DataError if it is missing or no folder."""
    root = Path(config.root).expanduser().absolute()
    try:
        found, is_folder = root.exists(), root.is_dir()
    except OSError as error:
        raise _cannot_list(root, error) from None
    if not found:
        raise DataError(
            f"data.root: there is no folder {root}; correct data.root (a relative path starts "
            "in the folder where vshift runs)"
        )
    if not is_folder:
        raise DataError(
            f"data.root: {root} is a file; it must be a folder. Unpack an archive first, and "
            "name the folder that holds train and test"
        )
    return root


def part_names(root: Path, config: ImageFolder) -> tuple[str, str]:
    """(train, test) as configured; DataError if one is missing or their classes differ."""
    names = {"train": config.train_folder, "test": config.test_folder}
    for key, name in names.items():
        if not (root / name).is_dir():
            raise DataError(
                f"data.{key}: there is no folder `{name}` in {root} (folders there: "
                f"{_listed(_subfolders(root))}); name one of them with data.{key}"
            )
    _same_classes(root, config.train_folder, config.test_folder)
    return config.train_folder, config.test_folder


def _same_classes(root: Path, train: str, test: str) -> None:
    in_train, in_test = set(class_names(root / train)), set(class_names(root / test))
    only = [
        f"only in {part}: {_listed(sorted(names))}"
        for part, names in ((train, in_train - in_test), (test, in_test - in_train))
        if names
    ]
    if only:
        raise DataError(
            f"data.root: {root / train} and {root / test} must have the same class folders; "
            + "; ".join(only)
        )


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders of a part, sorted; DataError if there are fewer than two."""
    names = _subfolders(folder)
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


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise _cannot_list(folder, error) from None


def _list_images(folder: Path) -> Tree:
    return Tree(
        folder,
        {
            name: [f"{name}/{file}" for file in _class_files(folder / name)]
            for name in class_names(folder)
        },
    )


def _class_files(folder: Path) -> list[str]:
    """A class's image files, sorted, relative to its folder; DataError if there are none."""
    files = []
    for where, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(where, folder)
        files += [os.path.normpath(f"{inside}/{name}") for name in names if _is_image(name)]
    if not files:
        raise DataError(
            f"data.root: the class folder {folder} has no images "
            f"({', '.join(sorted(SUFFIXES))}); add some or remove the folder"
        )
    return sorted(files)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in SUFFIXES


def _raise(error: OSError) -> None:
    raise _cannot_list(Path(error.filename), error) from None


def _cannot_list(folder: Path, error: OSError) -> DataError:
    reason = (error.strerror or str(error)).lower()
    return DataError(f"data.root: cannot list {folder}: {reason}; make it readable for you")


def _listed(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more


def _decode_cached(root: Path, paths: list[Path], size: int | None, channels: int) -> Pixels:
    if len(paths) <= CACHED_FROM:
        return decode_all(paths, size, channels)
    file = cache.images_file(_key(root, paths, size, channels))
    cached = cache.read_images(file)
    if cached is not None and len(cached) == len(paths):
        return cached
    images = decode_all(paths, size, channels)
    cache.write_images(file, images)
    return images


def _key(root: Path, paths: list[Path], size: int | None, channels: int) -> str:
    """Changes when a kept file's name, size or time changes, and with what is decoded from it."""
    digest = hashlib.sha256(json.dumps([FORMAT, str(root.resolve()), size, channels]).encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"data.root: cannot read {path}: {error.strerror}") from None
        entry = f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
