"""Images and targets from a function of one's own: called once, checked, and taken as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vshift.config import own_code
from vshift.config.data import OwnData
from vshift.data.source import Labels, Pixels, Source
from vshift.errors import DataError
from vshift.text import show_value

SEED = 0  # of a function that draws its data: a resumed run must get the same
LAYOUT = "[N, C, H, W] or [N, H, W]"


def open_own(config: OwnData) -> Source:
    """Call the config's function, and read every image that it gives.

    Raises:
        ConfigError: it cannot be called, or raises an exception.
        DataError: it gives something else than images and targets that can be trained on.
    """
    what = f"data.name: {config.name}"
    with _seeded():
        made = own_code.call(config)
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise DataError(
                f"{what} returned {_kind(made)}; it must return a pair (train, test), each of it "
                "(images, targets) or a torch.utils.data.Dataset"
            )
        if all(isinstance(part, Tensor | np.ndarray) for part in made):
            raise DataError(
                f"{what} returned one pair (images, targets); it must return (train, test), "
                "each of them such a pair"
            )
        train, train_labels = _read(made[0], f"{what}: the training")
        test, test_labels = _read(made[1], f"{what}: the test")
    _check_alike(train, test, f"{what}: the training images are", "the test images")
    _check_alike(train_labels, test_labels, f"{what}: the training targets are", "the test targets")
    note = ""
    if train_labels.dtype == np.int64:
        classes = _classes(train_labels, test_labels, config.classes, what)
    elif config.classes is None:
        classes = ()
        note = _ONE_HOT.format(what) if _is_one_hot(train_labels) else ""
    else:
        raise DataError(
            f"data.classes: {config.classes}, but the targets are floats, which are numbers to "
            "predict; make them integers, or leave classes out"
        )
    return Source(
        config.name,
        classes,
        train_labels,
        test_labels,
        lambda chosen, chosen_test: (train[chosen], test[chosen_test]),
        standardize=config.standardize,
        note=note,
    )


_ONE_HOT = (
    "{}: the targets are floats with a single 1 in every row, and are predicted as numbers; to "
    "train a classifier, give the classes: targets.argmax(1)"
)


def _is_one_hot(numbers: Labels) -> bool:
    """Whether numbers [N, D] look like classes."""
    is_binary = bool(((numbers == 0) | (numbers == 1)).all())
    return is_binary and numbers.shape[1] > 1 and bool((numbers.sum(1) == 1).all())


def _read(part: Any, what: str) -> tuple[Pixels, Labels]:
    with own_code.running(f"{what} set cannot be read"):
        images, targets = _pair(part, f"{what} set")
        pixels = _images(images, f"{what} images")
        return pixels, _labels(targets, len(pixels), f"{what} targets")


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the three generators that a data function may draw from; restored on exit."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(SEED)
        np.random.seed(SEED)
        torch.default_generator.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _kind(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {list(value.shape)} of {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


# ---- from what the function gives to one stack of images and one of targets


def _pair(part: Any, what: str) -> tuple[Any, Any]:
    """(images, targets) of one of the two sets; a Dataset's items are read one after the other."""
    if isinstance(part, tuple | list):
        if len(part) != 2:
            raise DataError(f"{what} is {_kind(part)}; it must be a pair (images, targets)")
        return part[0], part[1]
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise DataError(
            f"{what} is {_kind(part)}; it must be (images, targets) or a torch.utils.data.Dataset "
            "with a length"
        )
    if not len(part):
        raise DataError(f"{what} is empty")
    items = [part[i] for i in range(len(part))]
    for i, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{what} has item {i}, {_kind(item)}; it must be (image, target)")
    images = [
        _tensor(image, f"{what} has item {i}, whose image") for i, (image, _) in enumerate(items)
    ]
    targets = [torch.as_tensor(target) for _, target in items]
    for of, each in (("image", images), ("target", targets)):
        odd = next((i for i, tensor in enumerate(each) if tensor.shape != each[0].shape), None)
        if odd is not None:
            raise DataError(
                f"{what} has {of} {odd} of shape {list(each[odd].shape)}, and {of} 0 of "
                f"{list(each[0].shape)}; all must have one shape"
            )
    return torch.stack(images), torch.stack(targets)


def _tensor(image: Any, what: str) -> Tensor:
    """An image as a tensor [C, H, W] or [H, W]; one of Pillow's has its channels last."""
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image)
    if hasattr(image, "getbands"):
        pixels = torch.from_numpy(np.array(image))
        return pixels if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    raise DataError(f"{what} is {_kind(image)}; it must be a tensor, an array or a Pillow image")


def _images(images: Any, what: str) -> Pixels:
    """uint8 or float32 [N, H, W, C] of images [N, C, H, W] or [N, H, W]."""
    if not isinstance(images, Tensor | np.ndarray):
        raise DataError(f"{what} are {_kind(images)}; they must be a tensor or an array")
    tensor = torch.as_tensor(images).detach().cpu()
    shape = list(tensor.shape)
    if tensor.ndim not in (3, 4):
        raise DataError(f"{what} have the shape {shape}; it must be {LAYOUT}")
    if not len(tensor):
        raise DataError(f"{what} are none: the shape is {shape}")
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    height, width = tensor.shape[2:]
    if height != width or not tensor.numel():
        last = tensor.shape[3] in (1, 3, 4) and tensor.shape[1] == tensor.shape[2]
        hint = "permute(0, 3, 1, 2) puts the channels first" if last else "crop or resize them"
        raise DataError(f"{what} have the shape {shape}; it must be {LAYOUT}, square: {hint}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise DataError(
            f"{what} are of {tensor.dtype}; they must be uint8 from 0 to 255, or floats"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()
        bad = ~tensor.flatten(1).isfinite().all(1)
        if bad.any():
            raise DataError(
                f"{what} hold NaN or infinite values, first in image {int(bad.nonzero()[0])}"
            )
    pixels: Pixels = tensor.permute(0, 2, 3, 1).numpy()
    return pixels


def _labels(targets: Any, count: int, what: str) -> Labels:
    """Classes int64 [N], or numbers float32 [N, D]."""
    tensor = torch.as_tensor(targets).detach().cpu()
    shape = list(tensor.shape)
    if tensor.ndim not in (1, 2) or not all(shape[1:]):
        raise DataError(f"{what} have the shape {shape}; it must be [N], or [N, D] of floats")
    if len(tensor) != count:
        raise DataError(f"{what} are {len(tensor)}, and their images {count}")
    if tensor.is_floating_point():
        numbers = tensor.float().view(count, -1)
        bad = ~numbers.isfinite().all(1)
        if bad.any():
            raise DataError(
                f"{what} hold NaN or infinite values, first of image {int(bad.nonzero()[0])}"
            )
        return numbers.numpy()
    if tensor.dtype.is_complex:
        raise DataError(f"{what} are of {tensor.dtype}; they must be integers or floats")
    if tensor.numel() != count:
        raise DataError(
            f"{what} are integers of the shape {shape}; classes are [N], numbers are floats"
        )
    return tensor.to(torch.int64).flatten().numpy()


# ---- what the two sets must have in common


def _check_alike(train: NDArray[Any], test: NDArray[Any], the_train: str, the_test: str) -> None:
    """Refuse a test set of other shapes or another type."""
    for a, b in ((train.dtype, test.dtype), (train.shape[1:], test.shape[1:])):
        if a != b:
            shown = [
                str(x) if isinstance(x, np.dtype) else f"of the shape {list(x)}" for x in (a, b)
            ]
            raise DataError(f"{the_train} {shown[0]}, and {the_test} {shown[1]}; make them alike")


def _classes(train: Labels, test: Labels, count: int | None, what: str) -> tuple[str, ...]:
    """The names of the classes 0 to K − 1."""
    known = int(train.max()) + 1 if count is None else count
    for use, some in (("training", train), ("test", test)):
        wrong = np.flatnonzero((some < 0) | (some >= known))
        if len(wrong):
            why = "the largest training label is" if count is None else "data.classes allows"
            raise DataError(
                f"{what}: the {use} targets hold {show_value(int(some[wrong[0]]))} (image "
                f"{wrong[0]}); classes are counted from 0, and {why} {known - 1}"
            )
    present = np.bincount(train, minlength=known) if known <= 10**6 else np.zeros(1)
    if known == 1:
        raise DataError(f"{what}: all training images have class 0; training needs two classes")
    if not present.all():
        missing = int(present.argmin())
        raise DataError(
            f"{what}: no training image has class {missing} of 0 to {known - 1}; count classes "
            "from 0 without gaps, or give floats if the targets are numbers to predict"
        )
    return tuple(map(str, range(known)))
