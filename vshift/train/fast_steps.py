"""Faster ways to do what `TrainStep` does, and which of them a run takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from vshift.config.networks import OwnNetwork
from vshift.config.own import own_parts
from vshift.errors import ConfigError
from vshift.kernels import KernelsMissing, fuse
from vshift.networks.generators import outside_state, set_outside_state
from vshift.networks.own import needs_contiguous
from vshift.shift.modes import restoring_state
from vshift.train.captured_step import CapturedStep
from vshift.train.compiled_step import CannotCompile, CompiledStep
from vshift.train.context import TrainingContext
from vshift.train.loop import TrainStep


class CannotFuse(Exception):
    """Why the kernels do not fit a network, in a line."""


class FusedStep(TrainStep):
    """The eager step with noise and batch norm by the kernels of `vshift.kernels`."""

    name = "fused"

    def prepare(self) -> None:
        model, network = self.context.model, self.context.config.network
        if isinstance(network, OwnNetwork) and needs_contiguous(model):
            raise CannotFuse("the network's code does not work in channels_last")
        fuse(model, with_relu=not isinstance(network, OwnNetwork))


# What `auto` tries, the fastest first. Compiling on the CPU won less than the kernels do.
AUTO = {"cuda": ["captured", "compiled", "eager"], "cpu": ["fused", "eager"]}
TRAIN_STEPS: dict[str, type[TrainStep]] = {
    step.name: step for step in (TrainStep, FusedStep, CompiledStep, CapturedStep)
}
ONLY_ON = {"fused": "cpu", "captured": "cuda"}


def works_on(kind: str, device: str) -> bool:
    """Whether there is such a kind of step, for this type of device, `cpu` or `cuda`."""
    return kind in TRAIN_STEPS and ONLY_ON.get(kind, device) == device


def make_train_step(kind: str, context: TrainingContext, say: Callable[[str], None]) -> TrainStep:
    """The training step of a kind; for `auto` the fastest that works on the context's device.

    If one does not work, a message is printed and the next one is tried. Nothing that a run depends
    on has changed afterwards: weights, buffers, optimizer, sums, random state. A resumed run asks
    for the kind that it began with (`train_in` in run.py).

    Raises:
        ConfigError: the kind does not go with the device.
    """
    device = context.device.type
    if kind != "auto" and not works_on(kind, device):
        raise ConfigError(
            f"hardware.step: {kind} works on {ONLY_ON[kind]} only, and this run is on {device}; "
            "auto takes the fastest that works"
        )
    for name in AUTO[device] if kind == "auto" else [kind]:
        try:
            # A library's advice, raised as an error under `python -W error`, must not decide.
            with warnings.catch_warnings(action="ignore"):
                if issubclass(TRAIN_STEPS[name], CompiledStep):
                    _refuse_hidden_numbers(context)
                return _prepared(name, context, say)
        except (KernelsMissing, CannotFuse, CannotCompile) as reason:
            say(f"note: no {name} step: {reason}; using a slower one")
    return TrainStep(context)


def _refuse_hidden_numbers(context: TrainingContext) -> None:
    """Refuse to compile or capture code that draws numbers which would be constants there.

    Raises:
        CannotCompile: a forward draws from Python's or NumPy's generator.
    """
    if not own_parts(context.config):
        return
    images, _ = next(context.stream.epoch(0))
    before = outside_state()
    try:
        with restoring_state(context.model), torch.no_grad(), context.autocast():
            context.model.train()(images[:8])
        if outside_state() != before:
            raise CannotCompile("the network's code draws from Python's or NumPy's generator")
    finally:
        set_outside_state(before)


def _prepared(name: str, context: TrainingContext, say: Callable[[str], None]) -> TrainStep:
    step = TRAIN_STEPS[name](context)
    try:
        step.prepare()
        return step
    except CannotCompile as error:
        if name != "captured":
            raise
        reason = str(error)
    # Out of `except`: the error holds what the first try computed, and streams with it, which no
    # capture may meet.
    say(f"note: captured step without the compiler: {reason}")
    step = CapturedStep(context, compile=False)
    step.prepare()
    return step
