"""The section `data`: the images, by name, and how they are augmented."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Tag, field_validator, model_validator

from vshift.config.own import FORMS, OwnPart, Reference
from vshift.config.section import Count, Section, own_or_named
from vshift.text import show_value, suggest


class Augment(Section):
    crop: int = Field(
        4, ge=0, le=32, description="Pixels of black padding of the random crop; 0 turns it off."
    )
    flip: bool = Field(True, description="Random horizontal flip.")
    cutout: int = Field(
        0, ge=0, le=256, description="Side in pixels of the square that is erased; 0 turns it off."
    )
    mixup: float = Field(
        0.0, ge=0, le=1000, description="mixup's α: a batch's weight is from Beta(α, α); 0: off."
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="CutMix's α; 0: off. With mixup each takes half the batches.",
    )
    mix_probability: float = Field(
        1.0, gt=0, le=1, description="Share of the batches that mixup and CutMix change."
    )

    @property
    def mixes(self) -> bool:
        """Whether images and targets are mixed."""
        return bool(self.mixup or self.cutmix)


NO_AUGMENT = Augment(crop=0, flip=False)


class PlainAugment(Augment):
    """Nothing that the images may not bear, unless it is asked for."""

    crop: int = Field(0, ge=0, le=32, description=Augment.model_fields["crop"].description)
    flip: bool = Field(False, description=Augment.model_fields["flip"].description)


class _Data(Section):
    batch_size: int = Field(
        128, ge=2, le=10**6, description="Images per step; the epoch's last, smaller batch is kept."
    )
    train_limit: Count | None = Field(
        None, description="Use only the first images, balanced over classes; default: all."
    )
    test_limit: Count | None = Field(None, description="The same for the test images.")
    validation: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0, description="Training images held out, balanced over classes; tested every epoch."
    )
    augment: Augment = Field(Augment(), description="How training images are changed at random.")


# A saved config must find its data from any folder.
Folder = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(lambda root: os.path.abspath(os.path.expanduser(root))),
]


class Cifar(_Data):
    """Krizhevsky 2009: 50,000 + 10,000 colour images of 32×32 pixels; see `vshift data fetch`."""

    name: Literal["cifar10", "cifar100"] = Field(description="CIFAR-10 or CIFAR-100.")
    root: Folder | None = Field(
        None, description="Download folder; default: the user's cache folder."
    )


# What each ending of an image folder's files promises. Pillow may try no other format, whatever the
# ending: to open some, it starts programs.
IMAGE_FORMATS = {
    "jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP", "gif": "GIF",
    "ppm": "PPM", "tif": "TIFF", "tiff": "TIFF",
}  # fmt: skip


class ImageFolder(_Data):
    """A tree `<root>/train/<class>/` and `<root>/test/<class>/`, images at any depth of a class:
    jpg, jpeg, png, bmp, webp, gif, ppm, tif and tiff.
    """

    name: Literal["imagefolder"] = Field(description="Images in folders, one for each class.")
    root: Folder = Field(description="The tree's folder; a relative path starts where vshift runs.")
    train_folder: str = Field("train", description="Folder of the training images in root.")
    test_folder: str = Field("test", description="Folder of the test images in root.")
    size: Annotated[int, Field(ge=8, le=256)] | None = Field(
        None, description="Resize to this side in pixels; default: images as they are."
    )
    channels: Literal[1, 3] = Field(3, description="3 reads images in colour, 1 in grey.")


class Drawn(_Data):
    """An embedded set: any number of images, drawn by code."""

    train: int = Field(10_000, ge=10, le=1_000_000, description="Training images drawn.")
    test: int = Field(2_000, ge=10, le=1_000_000, description="Test images drawn.")
    seed: int = Field(
        0, ge=0, lt=2**128, description="Seed of the drawings, independent of the run's own."
    )


class Shapes(Drawn):
    """Ten classes of 32×32 colour images drawn by code; nothing is downloaded.

    With `target: angle` the eight figures that show it: not disc and ring.
    """

    name: Literal["shapes"] = Field(description="Drawn shapes.")
    target: Literal["class", "angle"] = Field(
        "class",
        description="What is learned: the figure's class, or by how many degrees it is turned.",
    )


class Patterns(Drawn):
    """Ten random patterns of 16×16 colour pixels, each shifted at random and hidden in noise."""

    name: Literal["patterns"] = Field(description="Random patterns.")
    augment: PlainAugment = Field(
        PlainAugment(),
        description="How training images are changed at random; default: not at all.",
    )


LIBRARY = tuple(f"torchvision:{name}" for name in ("MNIST", "FashionMNIST", "KMNIST", "SVHN"))


class OwnData(OwnPart, _Data):
    """A function that returns (train, test), or a data set of torchvision.

    Each of the two is a pair (images, targets) of tensors or arrays, or a
    `torch.utils.data.Dataset`. Images are uint8 or floats, [N, C, H, W] or [N, H, W]; targets are
    classes, integers [N], or numbers, floats [N] or [N, D].
    """

    section = "data"
    libraries = ("torchvision",)
    forms = (*LIBRARY, *FORMS)
    name: Reference = Field(description="The function, called with args.")
    root: Folder | None = Field(
        None, description="Download folder of a set of torchvision; default: the user's cache."
    )
    classes: Count | None = Field(
        None, description="Number of classes; default: the largest training label + 1."
    )
    standardize: bool = Field(
        True,
        description="Numbers to predict are brought to mean 0 and standard deviation 1 in "
        "training; RMSE and R² stay those of their own units.",
    )
    augment: PlainAugment = Field(
        PlainAugment(),
        description="How training images are changed at random; default: not at all.",
    )

    @field_validator("name")
    @classmethod
    def _there_is_one(cls, name: str) -> str:
        if name.startswith("torchvision:") and name not in LIBRARY:
            raise ValueError(
                f"{show_value(name)} is not known; {suggest(name, LIBRARY)}there are "
                f"{', '.join(LIBRARY)}; for another, write a function that returns it"
            )
        return name

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> OwnData:
        if not self.is_of_library and self.root:
            raise ValueError("root is for sets of torchvision; tell your own function in args")
        for key in ("args", "classes", "standardize") if self.is_of_library else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for a function of one's own; {self.name} has no use")
        return self


Data = Annotated[
    Annotated[Cifar | ImageFolder | Shapes | Patterns, Field(discriminator="name"), Tag("named")]
    | Annotated[OwnData, Tag("own")],
    own_or_named("name"),
]
