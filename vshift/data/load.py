"""Data sets by name: what they hold, and loading one onto a device.

Describing and listing need neither torch nor pixels; `load` imports torch when it is called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vshift.config.data import Cifar, Data, Drawn, ImageFolder, OwnData, Patterns, Shapes
from vshift.data import library, patterns, shapes
from vshift.data.folder import describe_folder, open_folder
from vshift.data.source import Labels, Pixels, Selection, Source, select

if TYPE_CHECKING:
    import torch

    from vshift.data.images import ImageSet, Part


@dataclass(frozen=True)
class Description:
    """What a network must fit.

    Attributes:
        outputs: the number of classes, or of numbers to predict.
        size: the images' height and width in pixels.
    """

    outputs: int
    channels: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A line of `vshift data list`; counts are None where they depend on the user's images.

    Attributes:
        where: its folder, or where it comes from.
    """

    name: str
    classes: int | None
    size: int | None
    train: int | None
    test: int | None
    where: str


def describe(config: Data) -> Description:
    """Outputs, channels and size of a data section; opens at most one image.

    Nothing is downloaded; a data function of one's own is called. Raises DataError for an image
    folder that is missing or malformed.
    """
    if isinstance(config, ImageFolder):
        classes, size = describe_folder(config)
        return Description(len(classes), config.channels, size)
    if config.name in library.SETS:
        found = library.SETS[config.name]
        return Description(found.classes, found.channels, found.size)
    if isinstance(config, OwnData):
        images = load(config)
        return Description(images.outputs, images.channels, images.size)
    if isinstance(config, Patterns):
        return Description(len(patterns.CLASSES), 3, patterns.SIZE)
    assert isinstance(config, Shapes)
    return Description(1 if config.target == "angle" else len(shapes.CLASSES), 3, shapes.SIZE)


def counts(config: Data) -> tuple[int, int, int] | None:
    """Numbers of training, validation and test images that a run uses.

    None where only files or code say how many there are.
    """
    if isinstance(config, Drawn):
        train, test = config.train, config.test
    elif config.name in library.SETS:
        train, test = library.SETS[config.name].train, library.SETS[config.name].test
    else:
        return None
    train = min(train, config.train_limit or train) - config.validation
    return train, config.validation, min(test, config.test_limit or test)


def available() -> list[Entry]:
    """Every data set by name, embedded ones first."""
    entries = [
        Entry(name, len(of.CLASSES), of.SIZE, 10_000, 2_000, "drawn by code, any number")
        for name, of in (("shapes", shapes), ("patterns", patterns))
    ]
    for name, found in library.SETS.items():
        fetch_it = f"vshift data fetch {name}"
        where = str(library.root_of(name, None)) if library.is_here(name) else fetch_it
        entries.append(Entry(name, found.classes, found.size, found.train, found.test, where))
    unknown = (None,) * 4
    return [
        *entries,
        Entry("imagefolder", *unknown, "yours: <data.root>/train/<class>/"),
        Entry("FILE.py:FUNCTION", *unknown, "yours: returns (train, test)"),
    ]


def load(config: Data, device: torch.device | str = "cpu") -> ImageSet:
    """Read the images that the limits keep and put them on the device.

    A set of torchvision is downloaded if it is missing. Raises DataError with what, where and what
    to do, and ConfigError for a data function of one's own that fails.
    """
    from vshift.data.images import image_set, with_numbers

    source = open_source(config)
    chosen = selected(config, source)
    kept = np.union1d(chosen.train, chosen.validation)
    pixels, test_pixels = source.read(kept, chosen.test)
    labels = source.train_labels[kept]
    held_out = np.isin(kept, chosen.validation)
    if held_out.any():
        train = _part(pixels[~held_out], labels[~held_out])
        validation = _part(pixels[held_out], labels[held_out])
    else:
        train, validation = _part(pixels, labels), None
    test = _part(test_pixels, source.test_labels[chosen.test])
    images = image_set(source.name, source.classes, train, validation, test)
    if not source.classes:
        images = with_numbers(
            images, standardize=source.standardize, mirror_negates=source.mirror_negates
        )
    return replace(images, note=source.note).to(device)


def selected(config: Data, source: Source) -> Selection:
    """The images of the data set that the config's limits keep."""
    return select(
        source.train_labels,
        source.test_labels,
        source.classes,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        validation=config.validation,
    )


def open_source(config: Data) -> Source:
    """The data set's labels, with its images still to be read."""
    if config.name in library.SETS:
        assert isinstance(config, Cifar | OwnData)
        return library.open_library(config.name, config.root)
    if isinstance(config, OwnData):
        from vshift.data.own import open_own

        return open_own(config)
    if isinstance(config, ImageFolder):
        return open_folder(config)
    if isinstance(config, Patterns):
        return patterns.open_patterns(config)
    assert isinstance(config, Shapes)
    return shapes.open_shapes(config)


def _part(images: Pixels, labels: Labels) -> Part:
    import torch

    from vshift.data.images import Part

    return Part(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))
