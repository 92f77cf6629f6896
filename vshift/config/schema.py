"""The config: frozen typed objects, one class per section of the YAML file.

Every field has its unit, range and default beside it; `vshift schema` prints them for editors.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from vshift.config.networks import Autoencoder, BatchNorm, Network, Norm
from vshift.config.recalibration import METHODS, MethodName
from vshift.config.section import OneOrList, Section, no_repeats
from vshift.text import pluralize

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**6)]  # 0 turns something off
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Epochs = Annotated[list[Count], Field(max_length=100_000)]
NAME_LENGTH = 120
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._=+-]{{0,{NAME_LENGTH - 1}}}")
# `seed-3` is a run's own folder; the others are devices on Windows, with any ending.
RESERVED = re.compile(r"seed-[0-9]+|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


# ---- data


class Augment(Section):
    crop: int = Field(
        4, ge=0, le=32, description="Pixels of black padding of the random crop; 0 turns it off."
    )
    flip: bool = Field(True, description="Random horizontal flip.")


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
    augment: Augment = Field(Augment(), description="Random crop and flip of training images.")


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


class ImageFolder(_Data):
    """A tree <root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg."""

    name: Literal["imagefolder"] = Field(description="Images in folders, one for each class.")
    root: Folder = Field(description="The tree's folder; a relative path starts where vshift runs.")
    train_folder: str = Field("train", description="Folder of the training images in root.")
    test_folder: str = Field("test", description="Folder of the test images in root.")
    size: Annotated[int, Field(ge=8, le=256)] | None = Field(
        None, description="Resize to this side in pixels; default: images as they are."
    )
    channels: Literal[1, 3] = Field(3, description="3 reads images in colour, 1 in grey.")


class Shapes(_Data):
    """Ten classes of 32×32 colour images drawn by code; nothing is downloaded."""

    name: Literal["shapes"] = Field(description="Drawn shapes.")
    train: int = Field(10_000, ge=10, le=1_000_000, description="Training images drawn.")
    test: int = Field(2_000, ge=10, le=1_000_000, description="Test images drawn.")
    seed: int = Field(
        0, ge=0, lt=2**128, description="Seed of the drawings, independent of the run's own."
    )


Data = Annotated[Cifar | ImageFolder | Shapes, Field(discriminator="name")]


# ---- training


class SGD(Section):
    name: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent with momentum.")
    learning_rate: float = Field(0.1, gt=0, description="Where schedules start.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Share of the previous step that is kept; 0: none."
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="Added to the gradient: this times the weight."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum instead of the usual one.")
    decay_norm_and_bias: bool = Field(
        True, description="Weight decay also on biases and on the norms' scale and shift."
    )

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return nesterov


class _Warmup(Section):
    warmup: float = Field(
        0.0, ge=0, description="Epochs of linear increase from 0 to the learning rate."
    )


class Constant(_Warmup):
    name: Literal["constant"] = Field(description="The learning rate stays.")


class MultiStep(_Warmup):
    name: Literal["multistep"] = Field(description="The learning rate falls at milestones.")
    milestones: Epochs = Field(
        description="Finished epochs after which the rate is multiplied by factor, increasing."
    )
    factor: Fraction = Field(0.1, description="What the rate is multiplied by at a milestone.")

    @field_validator("milestones")
    @classmethod
    def _increase(cls, milestones: list[int]) -> list[int]:
        if any(a >= b for a, b in itertools.pairwise(milestones)):
            raise ValueError("milestones must increase, for instance [81, 122]")
        return milestones


class Cosine(_Warmup):
    name: Literal["cosine"] = Field(description="The learning rate follows half a cosine to final.")
    final: float = Field(0.0, ge=0, description="The learning rate at the end.")


class OneCycle(Section):
    """Smith and Topin 2018 (1708.07120), with cosine pieces and without cycling momentum."""

    name: Literal["onecycle"] = Field(description="The learning rate rises to peak, then falls.")
    peak: Positive | None = Field(
        None, description="Highest learning rate; default: the optimizer's learning_rate."
    )
    pct_start: Fraction = Field(0.3, description="Share of the steps in which the rate rises.")
    div_factor: float = Field(25.0, ge=1, description="peak / the first learning rate.")
    final_div_factor: float = Field(1e4, ge=1, description="The first learning rate / the last.")


Schedule = Annotated[Constant | MultiStep | Cosine | OneCycle, Field(discriminator="name")]


# ---- what is measured


class Measure(Section):
    every: CountOrZero = Field(
        1, description="Log every layer's variances each n-th epoch and the last; 0: never."
    )
    eval_batches: Count = Field(
        30, description="Augmented training batches that eval_variance is averaged over."
    )
    eval_epochs: OneOrList[Literal["all"], Epochs] = Field(
        [], description="Epochs at which eval_variance is measured; the last one always is."
    )
    explain_batches: CountOrZero = Field(
        10,
        description="Batches from which a layer's local, inherited and predicted ratio are taken, "
        "wherever eval_variance is measured; 0: not at all.",
    )
    modes: bool = Field(
        False,
        description="After the last epoch, accuracy for noise on and off with BN on batch, running "
        "and recalibrated statistics.",
    )
    monte_carlo: CountOrZero = Field(
        0, description="Passes of Monte Carlo dropout over the test images; 0: none."
    )

    @field_validator("monte_carlo")
    @classmethod
    def _a_spread_takes_two(cls, passes: int) -> int:
        if passes == 1:
            raise ValueError("a spread takes at least 2 passes; 0 turns it off")
        return passes


class Recalibration(Section):
    """Re-estimating BN statistics after the last epoch: what Li et al. 2019 call Adjust."""

    methods: Annotated[list[MethodName], no_repeats("method")] = Field(
        ["precise"],
        max_length=len(METHODS),
        description=" ".join(f"{name}: {method.words}." for name, method in METHODS.items()),
    )
    batches: Count = Field(30, description="Training batches that they are computed from.")
    augment: bool = Field(True, description="Crop and flip them as in training.")
    moments: Literal["both", "variance"] = Field(
        "both", description="Re-estimate mean and variance, or the variance only."
    )
    estimator: Literal["pooled", "average"] = Field(
        "pooled", description="Of all values of all batches, or the average over batches."
    )
    batch_weight: float = Field(
        0.5, ge=0, le=1, description="For mix: the weight of the test batch's own statistics."
    )


# ---- how it runs


class Hardware(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one."
    )
    precision: Literal["bf16", "float32"] = Field(
        "bf16", description="bf16: autocast, with weights and BN statistics in float32."
    )
    step: Literal["auto", "eager", "fused", "compiled", "captured"] = Field(
        "auto",
        description="How a training step runs: eager, PyTorch's operations one after the other; "
        "fused, with vshift's CPU kernels; compiled, by torch.compile; captured, whole steps in a "
        "CUDA graph. auto: the fastest that works.",
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads; default: PyTorch's own choice."
    )


class Checkpoint(Section):
    """When a run saves its state. It changes no result: a run resumes bit for bit.

    A run also saves it when a signal asks it to stop, and at its end.
    """

    every: CountOrZero = Field(1, description="Epochs between checkpoints; 0: not by epochs.")
    minutes: Annotated[float, Field(gt=0, le=10**6)] | None = Field(
        10.0, description="Minutes between checkpoints, also inside an epoch; null: not by time."
    )
    keep: int = Field(
        2,
        ge=1,
        le=9,
        description="Number of checkpoints to keep; if the newest is damaged, the one before it is "
        "used.",
    )


Grid = dict[str, Annotated[list[Any], Field(min_length=1, max_length=1000)]]
Arms = Annotated[dict[str, dict[str, Any]], Field(max_length=1000)]


class Config(Section):
    """One study arm: what is trained, how, and what is measured."""

    name: str = Field(description="The run folder's name; default: the file's stem.")
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], no_repeats("seed")] = Field(
        [0], min_length=1, max_length=10_000, description="One run each."
    )
    data: Data = Field(description="The images, by name.")
    network: Network = Field(
        description="What is trained, by name: family, depth, block order, noise."
    )
    norm: Norm = Field(BatchNorm(kind="batch"), description="The normalisation layers, by kind.")
    optimizer: SGD = Field(SGD(), description="How weights are updated.")
    epochs: int = Field(ge=1, le=100_000, description="Passes over the training images.")
    schedule: Schedule = Field(
        Constant(name="constant"), description="The learning rate over the run, by name."
    )
    measure: Measure = Field(Measure(), description="What is logged of the BN layers, and when.")
    recalibration: Recalibration = Field(
        Recalibration(), description="BN statistics re-estimated after the last epoch."
    )
    hardware: Hardware = Field(Hardware(), description="Where and how precisely it runs.")
    checkpoint: Checkpoint = Field(
        Checkpoint(), description="When a run saves its state; changes no result."
    )
    grid: Grid | None = Field(
        None, description="Sweeps only: dotted keys and the values to try, all combinations."
    )
    zip: Grid | None = Field(
        None,
        description="Sweeps only: dotted keys and lists of one length: the first values are set "
        "together, then the second ones; combined with grid and arms.",
    )
    arms: Arms | None = Field(
        None,
        description="Sweeps only: names, each with the dotted keys and values that it sets; "
        "combined with zip and grid.",
    )

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                "a name becomes a folder: letters, digits, and . _ = + - after the first, "
                "at most 120"
            )
        if RESERVED.fullmatch(name):
            raise ValueError("this name is taken: seed-<n> is a run's own folder, con and the like")
        return name

    @field_validator("norm", mode="before")
    @classmethod
    def _batch_unless_said(cls, norm: Any) -> Any:
        """`norm: {momentum: 0.05}` changes the default norm."""
        return {"kind": "batch", **norm} if isinstance(norm, dict) else norm

    @field_validator("schedule")
    @classmethod
    def _within_epochs(cls, schedule: Any, info: ValidationInfo) -> Any:
        epochs = info.data.get("epochs")
        if epochs is None:
            return schedule
        if isinstance(schedule, MultiStep) and schedule.milestones[-1:] > [epochs - 1]:
            raise ValueError(
                f"the last milestone must come before the last of {pluralize(epochs, 'epoch')}"
            )
        if isinstance(schedule, _Warmup) and schedule.warmup > epochs:
            raise ValueError(f"warmup is longer than the run: {pluralize(epochs, 'epoch')}")
        return schedule

    @field_validator("measure")
    @classmethod
    def _measured_epochs(cls, measure: Measure, info: ValidationInfo) -> Measure:
        epochs = info.data.get("epochs")
        late = [e for e in measure.eval_epochs if isinstance(e, int) and epochs and e > epochs]
        if late:
            raise ValueError(f"eval_epochs names epoch {late[0]}, and there are {epochs}")
        counts = [key for key in ("modes", "monte_carlo") if getattr(measure, key)]
        if counts and isinstance(info.data.get("network"), Autoencoder):
            raise ValueError(f"{counts[0]} counts right answers, and an autoencoder gives none")
        return measure


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors.

    Nothing is required and a union is `anyOf`: what a file leaves out may come from its base.
    """
    schema = _relaxed(Config.model_json_schema())
    path = {"type": "string", "description": "A file, from this file's folder."}
    base = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Config files that this one builds on: deep merge, later files win, this "
        "file wins over all; a section of another name or kind replaces the base's.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "vshift config",
        "properties": {"base": base, **schema["properties"]},
    }


def _relaxed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_relaxed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    relaxed = {
        key: value if key in ("default", "const", "enum") else _relaxed(value)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }
    if isinstance(relaxed.get("oneOf"), list):
        relaxed["anyOf"] = relaxed.pop("oneOf")
        relaxed.pop("discriminator", None)
    return relaxed
