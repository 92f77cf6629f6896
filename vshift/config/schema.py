"""The config: frozen typed objects, one class per section of the YAML file.

Every field has its unit, range and default beside it; `vshift schema` prints them for editors.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from vshift.config.average import Average
from vshift.config.data import Data, Shapes
from vshift.config.loss import CrossEntropy, Loss
from vshift.config.measure import Measure, Recalibration
from vshift.config.networks import Autoencoder, Network
from vshift.config.norm import BatchNorm, Norm, NormWord
from vshift.config.section import CountOrZero, Section, no_repeats
from vshift.config.training import SGD, Constant, MultiStep, Optimizer, Schedule, Warmup
from vshift.text import pluralize

NAME_LENGTH = 120
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._=+-]{{0,{NAME_LENGTH - 1}}}")
# `seed-3` is a run's own folder; the others are devices on Windows, with any ending.
RESERVED = re.compile(r"seed-[0-9]+|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)

# The keys that are about the file and not about a run: `load` reads them, and no config has them.
FILE_KEYS = ("base", "is_base")


class Hardware(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one."
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto",
        description="bf16: autocast, with weights and BN statistics in float32. float32: PyTorch's "
        "default, on a GPU with convolutions in TF32. auto: on a GPU bf16, on a CPU the faster one "
        "in a trial of a few steps, which the cache folder keeps.",
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
    deterministic: bool = Field(
        False,
        description="On a GPU, deterministic algorithms only: a run that is repeated or resumed "
        "there ends in the same bits, more slowly. On a CPU it does so anyway.",
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
    loss: Loss | None = Field(
        None,
        description="What is minimised, by name; default: cross_entropy for classes, mse for "
        "numbers and of an autoencoder.",
    )
    optimizer: Optimizer = Field(SGD(), description="How weights are updated, by name.")
    epochs: int = Field(ge=1, le=100_000, description="Passes over the training images.")
    schedule: Schedule = Field(
        Constant(name="constant"), description="The learning rate over the run, by name."
    )
    average: Average | None = Field(
        None,
        description="A running average of the weights, tested after the last epoch; the training "
        "stays as it is.",
    )
    measure: Measure = Field(Measure(), description="What is logged of the BN layers, and when.")
    recalibration: Recalibration = Field(
        Recalibration(), description="BN statistics re-estimated after the last epoch."
    )
    hardware: Hardware = Field(Hardware(), description="Where and how precisely it runs.")
    checkpoint: Checkpoint = Field(
        Checkpoint(), description="When a run saves its state; changes no result."
    )
    notes: str | None = Field(
        None, max_length=10_000, description="Anything worth keeping with the run; changes nothing."
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
        """`norm: {momentum: 0.05}` changes the default norm; `norm: layer` is its kind."""
        if isinstance(norm, str) and ":" not in norm:
            return {"kind": norm}
        return {"kind": "batch", **norm} if isinstance(norm, dict) else norm

    @field_validator("loss")
    @classmethod
    def _fits_the_targets(cls, loss: Any, info: ValidationInfo) -> Any:
        network, data = info.data.get("network"), info.data.get("data")
        what = "an autoencoder gives pixels" if isinstance(network, Autoencoder) else ""
        if isinstance(data, Shapes) and data.target == "angle":
            what = "an angle is a number"
        if isinstance(loss, CrossEntropy) and what:
            raise ValueError(f"cross_entropy is for classes, and {what}; write {{name: mse}}")
        return loss

    @field_validator("optimizer", mode="before")
    @classmethod
    def _sgd_unless_said(cls, optimizer: Any) -> Any:
        return {"name": "sgd", **optimizer} if isinstance(optimizer, dict) else optimizer

    @field_validator("epochs")
    @classmethod
    def _reached(cls, epochs: int, info: ValidationInfo) -> int:
        """What happens within the run has an epoch to happen in."""
        frozen = getattr(info.data.get("norm"), "freeze_after", None)
        if frozen is not None and frozen >= epochs:
            raise ValueError(
                f"norm.freeze_after {frozen} leaves no epoch to train with frozen statistics, of "
                f"{pluralize(epochs, 'epoch')}"
            )
        for noise in getattr(info.data.get("network"), "noises", ()):
            if not noise.epochs(epochs):
                raise ValueError(
                    f"network.noise: {noise.extent[-1]} is no whole epoch, of "
                    f"{pluralize(epochs, 'epoch')}"
                )
        return epochs

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
        if isinstance(schedule, Warmup) and schedule.warmup > epochs:
            raise ValueError(f"warmup is longer than the run: {pluralize(epochs, 'epoch')}")
        return schedule

    @field_validator("measure")
    @classmethod
    def _measured_epochs(cls, measure: Measure, info: ValidationInfo) -> Measure:
        epochs = info.data.get("epochs")
        late = [e for e in measure.eval_epochs if isinstance(e, int) and epochs and e > epochs]
        if late:
            raise ValueError(f"eval_epochs names epoch {late[0]}, and there are {epochs}")
        passes = [key for key in ("monte_carlo", "monte_carlo_bn") if getattr(measure, key)]
        counts = ["modes", *passes] if measure.modes else passes
        if counts and isinstance(info.data.get("network"), Autoencoder):
            raise ValueError(f"{counts[0]} counts right answers, and an autoencoder gives none")
        return measure


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors.

    Nothing is required and a union is `anyOf`: what a file leaves out may come from its base.
    """
    schema = _relaxed(Config.model_json_schema())
    # Not by the validator's json_schema_input_type: pydantic 2.10.0 and 2.11.0 fail on it.
    words = {"enum": [*get_args(NormWord)], "type": "string"}
    schema["properties"]["norm"]["anyOf"].insert(0, words)
    path = {"type": "string", "description": "A file, from this file's folder."}
    base = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Config files that this one builds on: deep merge, later files win, this "
        "file wins over all; a section of another name or kind replaces the base's.",
    }
    is_base = {
        "type": "boolean",
        "description": "true: the file is a base of others only, and is not run by itself; a sweep "
        "of its folder leaves it out. Not inherited.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "vshift config",
        "properties": {"base": base, "is_base": is_base, **schema["properties"]},
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
