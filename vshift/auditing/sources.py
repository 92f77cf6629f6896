"""What `vshift audit --data SOURCE` may name: images, a torchvision set, random, a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from vshift.auditing.models import call_in_file, opened_run
from vshift.auditing.samples import AuditError
from vshift.text import did_you_mean

ALLOWED = (
    "an image folder (<folder>/<class>/*.jpg), torchvision:NAME@FOLDER, random, FILE.py:LOADER, or "
    "for a run `train` or `test`"
)
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


@dataclass(frozen=True)
class Reading:
    """How images become inputs: [N, 3, size, size], normalised, in batches, in a seeded order."""

    batch_size: int = 32
    size: int = 224
    normalise: str = "imagenet"
    seed: int = 0


class Repeatable:
    """A loader that gives the same batches each time it is iterated."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


def load_source(
    spec: str, reading: Reading, run: Path | None = None, option: str = "--data"
) -> Iterable[Any]:
    """The loader that a specification names.

    Args:
        run: the run folder under audit, for `train` (augmented) and `test`.
        option: that named it, for messages.

    Raises:
        AuditError: an unknown name, a folder without images, an exception in the user's file.
    """
    if spec == "random":
        return _random(reading)
    if run is not None and spec in ("train", "test"):
        return _of_run(run, spec)
    if spec.startswith("torchvision:"):
        return _batches(_torchvision(spec.removeprefix("torchvision:"), reading, option), reading)
    if ".py:" in spec:
        return _of_file(spec, reading)
    if Path(spec).expanduser().is_dir():
        return _batches(_folder(Path(spec).expanduser(), reading, option), reading)
    if spec.endswith(".py"):
        raise AuditError(f"{option}: add the loader's name, {spec}:NAME")
    raise AuditError(f"{option}: {spec!r} is none of {ALLOWED}")


def _of_file(spec: str, reading: Reading) -> Iterable[Any]:
    """A loader of the user's own; a data set with a length is put into batches."""
    found = call_in_file(spec)
    if isinstance(found, Dataset) and not isinstance(found, IterableDataset):
        return _batches(found, reading)
    if isinstance(found, Mapping) or not hasattr(found, "__iter__"):
        raise AuditError(f"{spec} gave a {type(found).__name__}, not a loader of batches")
    loader: Iterable[Any] = found
    return loader


def _random(reading: Reading) -> Repeatable:
    """Normal random numbers, without labels; any number of batches."""

    def make() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(reading.seed)
        while True:
            shape = (reading.batch_size, 3, reading.size, reading.size)
            yield torch.randn(shape, generator=generator)

    return Repeatable(make)


def _transform(reading: Reading) -> Any:
    from torchvision import transforms

    mean, deviation = NORMALISATIONS[reading.normalise]
    return transforms.Compose(
        [
            transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.Resize(reading.size),
            transforms.CenterCrop(reading.size),
            transforms.ToTensor(),
            transforms.Normalize(mean, deviation),
        ]
    )


def _folder(path: Path, reading: Reading, option: str) -> Any:
    from torchvision.datasets import ImageFolder

    parts = sorted(found.name for found in path.iterdir() if found.is_dir())
    if parts and {part.lower() for part in parts} <= SPLITS:
        raise AuditError(
            f"{option}: {path} holds {', '.join(parts)}, which are no classes; name one of them, "
            f"{path / parts[0]}"
        )
    try:
        return ImageFolder(path, _transform(reading))
    except (FileNotFoundError, OSError) as error:
        raise AuditError(
            f"{path}: {error}; put every class's images into a folder of its own, {path}/<class>/"
        ) from error


def _torchvision(spec: str, reading: Reading, option: str) -> Any:
    from torchvision import datasets

    name, _, root = spec.partition("@")
    names = [n for n in datasets.__all__ if n[0].isupper()]
    if name not in names:
        hint = did_you_mean(name, names)
        raise AuditError(f"torchvision has no data set {name!r}" + (f"; {hint}" if hint else ""))
    make: Any = getattr(datasets, name)
    try:
        if name == "FakeData":
            size = (3, reading.size, reading.size)
            return make(size=512, image_size=size, transform=_transform(reading))
        return make(root or ".", transform=_transform(reading))
    except (TypeError, RuntimeError, OSError, ValueError) as error:
        raise AuditError(
            f"{option} torchvision:{name}@{root or '.'}: {error}; name its folder after @"
        ) from error


def _batches(dataset: Any, reading: Reading) -> Repeatable:
    """Batches in a random order that the seed decides; a smaller rest is left out."""

    def make() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(reading.seed)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        size = min(reading.batch_size, max(1, len(order) // 2))
        for start in range(0, len(order) - size + 1, size):
            yield default_collate([dataset[i] for i in order[start : start + size]])

    return Repeatable(make)


def _of_run(path: Path, part: str) -> Repeatable:
    """A run's own images as its network takes them: augmented training images, or the test's."""
    subject = opened_run(path)
    if part == "train":
        return Repeatable(lambda: iter(subject.augmented(subject.config.epochs, None)()))
    return Repeatable(lambda: iter(subject.plain(subject.images.test)()))
