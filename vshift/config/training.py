"""The sections `optimizer` and `schedule`."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator

from vshift.config.own import OwnPart, Reference
from vshift.config.section import Epochs, Fraction, Positive, Section, own_or_named


class _Optimizer(Section):
    train: Literal["all", "norm"] = Field(
        "all",
        description="norm: only the norms' scale γ and shift β; all else stays as it was "
        "initialised (Frankle et al. 2020).",
    )


class _Decaying(_Optimizer):
    decay_norm_and_bias: bool = Field(
        True, description="Weight decay also on biases and on the norms' scale and shift."
    )


class SGD(_Decaying):
    name: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent with momentum.")
    learning_rate: float = Field(0.1, gt=0, description="Where schedules start.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Share of the previous step that is kept; 0: none."
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="Added to the gradient: this times the weight."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum instead of the usual one.")

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return nesterov


class AdamW(_Decaying):
    """Loshchilov and Hutter 2019 (1711.05101), with PyTorch's defaults."""

    name: Literal["adamw"] = Field(description="Adam with decoupled weight decay.")
    learning_rate: float = Field(1e-3, gt=0, description="Where schedules start.")
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = Field([0.9, 0.999], description="Decay of the averages of the gradient and of its square.")
    eps: float = Field(1e-8, ge=0, description="Added to the root of the average square.")
    weight_decay: float = Field(
        1e-2, ge=0, description="Taken off a weight in each step: this times the learning rate."
    )
    amsgrad: bool = Field(False, description="Divide by the largest average square so far.")


TorchName = Literal[
    "adadelta", "adafactor", "adagrad", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop",
    "rprop",
]  # fmt: skip
# Where PyTorch's own default is another one.
_LEARNING_RATES = {
    "adadelta": 1.0, "adafactor": 1e-2, "adagrad": 1e-2, "adamax": 2e-3, "asgd": 1e-2,
    "nadam": 2e-3, "rmsprop": 1e-2, "rprop": 1e-2,
}  # fmt: skip


class TorchOptimizer(_Optimizer):
    """A class of `torch.optim`.

    Left out: LBFGS calls the loss several times a step, SparseAdam takes sparse gradients, and
    Muon trains matrices only.
    """

    name: TorchName = Field(description="PyTorch's class of this name.")
    learning_rate: float = Field(
        default_factory=lambda data: _LEARNING_RATES.get(data["name"], 1e-3),
        gt=0,
        description="Where schedules start; default: PyTorch's.",
    )
    args: dict[str, Any] = Field({}, description="The class's own options, as in PyTorch.")

    @field_validator("args")
    @classmethod
    def _not_the_rate(cls, args: dict[str, Any]) -> dict[str, Any]:
        if "lr" in args:
            raise ValueError("lr is the key learning_rate, beside args")
        return args


class OwnOptimizer(OwnPart, _Optimizer):
    """Built as `torch.optim.Optimizer` is: called with `params` and, if asked for, `lr`."""

    section = "optimizer"
    name: Reference = Field(description="A class or function of one's own that gives an optimizer.")
    learning_rate: float = Field(gt=0, description="Where schedules start.")


NamedOptimizer = SGD | AdamW | TorchOptimizer
AnyOptimizer = NamedOptimizer | OwnOptimizer
Optimizer = Annotated[
    Annotated[NamedOptimizer, Field(discriminator="name"), Tag("named")]
    | Annotated[OwnOptimizer, Tag("own")],
    own_or_named("name"),
]


class Warmup(Section):
    warmup: float = Field(
        0.0,
        ge=0,
        description="Epochs of linear increase from 0 to the learning rate, as the nearest whole "
        "number of steps.",
    )


class Constant(Warmup):
    name: Literal["constant"] = Field(description="The learning rate stays.")


class MultiStep(Warmup):
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


class Cosine(Warmup):
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


class OwnSchedule(OwnPart):
    """Called for each step with those of `step` (from 0), `steps`, `epoch` (from 0) and `epochs`
    that it asks for."""

    section = "schedule"
    name: Reference = Field(
        description="A function of one's own that gives the factor of the learning rate."
    )


NamedSchedule = Constant | MultiStep | Cosine | OneCycle
AnySchedule = NamedSchedule | OwnSchedule
Schedule = Annotated[
    Annotated[NamedSchedule, Field(discriminator="name"), Tag("named")]
    | Annotated[OwnSchedule, Tag("own")],
    own_or_named("name"),
]
