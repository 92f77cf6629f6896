"""What data sets there are and what they hold, told without torch and without reading pixels."""

from __future__ import annotations

from dataclasses import dataclass

from vshift.config.schema import Data, ImageFolder
from vshift.data import cifar, folder, shapes
from vshift.data.decode import image_size
from vshift.errors import DataError


@dataclass(frozen=True)
class Description:
    """What a network must fit: `size` is the images' height and width in pixels."""

    classes: int
    channels: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A line of `vshift data list`; counts are None where they depend on the user's images."""

    name: str
    classes: int | None
    size: int | None
    train: int | None
    test: int | None
    where: str
    note: str


def describe(config: Data) -> Description:
    """Classes, channels and size of a data section; opens at most one image.

    Nothing is downloaded. Raises DataError for an image folder that is missing or malformed.
    """
    if isinstance(config, ImageFolder):
        return _describe_folder(config)
    classes = len(shapes.CLASSES) if config.name == "shapes" else cifar.CLASSES[config.name]
    return Description(classes, 3, 32)


def _describe_folder(config: ImageFolder) -> Description:
    classes, path = folder.first_image(config)
    width, height = image_size(path)
    if config.size is None and width != height:
        raise DataError(
            f"data.root: {path} is {width}×{height} pixels, and images must be square; "
            "set data.size, for instance to 32, to resize all of them"
        )
    return Description(len(classes), config.channels, config.size or width)


def available() -> list[Entry]:
    """Every data set by name, embedded ones first."""
    embedded = Entry(
        "shapes", len(shapes.CLASSES), 32, 10_000, 2_000, "embedded", "drawn by code; any number"
    )
    own = Entry(
        "imagefolder", None, None, None, None, "data.root", "your own: <root>/train/<class>/*.jpg"
    )
    return [embedded, *(_cifar(name) for name in cifar.CLASSES), own]


def _cifar(name: str) -> Entry:
    here = cifar.is_here(name)
    note = "downloaded" if here else f"not downloaded: vshift data fetch {name}"
    where = str(cifar.default_root(name))
    return Entry(name, cifar.CLASSES[name], 32, 50_000, 10_000, where, note)
