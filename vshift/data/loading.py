"""A config's data section → an ImageSet on a device."""

from __future__ import annotations

import numpy as np
import torch

from vshift.config.schema import Cifar, Data, ImageFolder, Shapes
from vshift.data import shapes
from vshift.data.cifar import open_cifar
from vshift.data.folder import open_folder
from vshift.data.images import ImageSet, Part, image_set
from vshift.data.select import select
from vshift.data.source import Labels, Pixels, Source


def load(config: Data, device: torch.device | str = "cpu") -> ImageSet:
    """Read the images that the limits keep and put them on the device.

    CIFAR is downloaded if it is missing. Raises DataError with what, where and what to do.
    """
    source = open_source(config)
    chosen = select(
        source.train_labels,
        source.test_labels,
        source.classes,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        validation=config.validation,
    )
    kept = np.union1d(chosen.train, chosen.validation)
    pixels, test_pixels = source.read(kept, chosen.test)
    labels = source.train_labels[kept]
    held_out = np.isin(kept, chosen.validation)
    train = _part(pixels, labels)
    validation = None
    if held_out.any():
        train = _part(pixels[~held_out], labels[~held_out])
        validation = _part(pixels[held_out], labels[held_out])
    test = _part(test_pixels, source.test_labels[chosen.test])
    return image_set(source.name, source.classes, train, validation, test).to(device)


def open_source(config: Data) -> Source:
    """The data set's labels, with its images still to be read."""
    if isinstance(config, Cifar):
        return open_cifar(config)
    if isinstance(config, ImageFolder):
        return open_folder(config)
    return _open_shapes(config)


def _open_shapes(config: Shapes) -> Source:
    def read(chosen: Labels, chosen_test: Labels) -> tuple[Pixels, Pixels]:
        return _drawn(config.seed, "train", chosen), _drawn(config.seed, "test", chosen_test)

    return Source(
        config.name, shapes.CLASSES, shapes.labels(config.train), shapes.labels(config.test), read
    )


def _drawn(seed: int, part: str, chosen: Labels) -> Pixels:
    count = int(chosen.max()) + 1
    images = shapes.draw(seed, part, count)
    return images if count == len(chosen) else images[chosen]


def _part(images: Pixels, labels: Labels) -> Part:
    return Part(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))
