"""Which step a run takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from vshift.data import Stream
from vshift.errors import ConfigError
from vshift.kernels import KernelsMissing
from vshift.kernels.modules import fuse
from vshift.shift.training_log import TrainingLog
from vshift.train.captured_step import CapturedStep
from vshift.train.compiled_step import CannotCompile, CompiledStep
from vshift.train.objective import Objective, classification
from vshift.train.sgd import SGD
from vshift.train.step import EagerStep, FusedStep, MetricAccumulator

# What `auto` tries, the fastest first. Compiling on the CPU won less than the kernels do.
AUTO = {"cuda": ["captured", "compiled", "eager"], "cpu": ["fused", "eager"]}
STEPS: dict[str, type[EagerStep]] = {
    "eager": EagerStep,
    "fused": FusedStep,
    "compiled": CompiledStep,
    "captured": CapturedStep,
}
ONLY_ON = {"fused": "cpu", "captured": "cuda"}


def works_on(kind: str, device: str) -> bool:
    """Whether a kind of step goes with a type of device, `cpu` or `cuda`."""
    return ONLY_ON.get(kind, device) == device


def make_step(
    kind: str,
    stream: Stream,
    model: nn.Module,
    optimizer: SGD,
    precision: str,
    tally: MetricAccumulator,
    log: TrainingLog | None = None,
    objective: Objective = classification,
    say: Callable[[str], None] = print,
) -> EagerStep:
    """The training step of a kind; for `auto` the fastest that works on the stream's device.

    A step that cannot be had is said in a line, and the next one is taken. Nothing that a run
    depends on has changed afterwards: weights, buffers, optimizer, sums, random state.

    Args:
        kind: `eager`, the reference; `fused`, the same with the kernels of `vshift.kernels`, on the
            CPU; `compiled`; `captured`, on CUDA; `auto`.
        stream: the batches to come, on the device where the model is.

    Raises:
        ConfigError: the kind does not go with the device.
    """
    device = stream.part.images.device.type
    if not works_on(kind, device):
        raise ConfigError(
            f"hardware.step: {kind} works on {ONLY_ON[kind]} only, and this run is on {device}; "
            "auto takes the fastest that works"
        )
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "precision": precision,
        "tally": tally,
        "log": log,
        "objective": objective,
    }
    *first, last = AUTO[device] if kind == "auto" else dict.fromkeys([kind, "eager"])
    for name in first:
        try:
            # A library's advice, raised as an error under `python -W error`, must not decide.
            with warnings.catch_warnings(action="ignore"):
                return _made(name, stream, parts, say)
        except (KernelsMissing, CannotCompile) as reason:
            say(f"no {name} step: {reason}; going on with a slower one")
    return STEPS[last](**parts)


def _made(
    name: str, stream: Stream, parts: dict[str, Any], say: Callable[[str], None]
) -> EagerStep:
    if name == "captured":
        return _captured(stream, parts, say)
    if name == "fused":
        fuse(parts["model"])
    step = STEPS[name](**parts)
    if isinstance(step, CompiledStep):
        step.prepare(*next(stream.epoch(0)))
    return step


def _captured(stream: Stream, parts: dict[str, Any], say: Callable[[str], None]) -> CapturedStep:
    """With compiled passes in its graphs; where the compiler fails, with the eager ones."""
    try:
        step = CapturedStep(**parts)
        step.prepare_graphs(stream)
    except CannotCompile as reason:
        say(f"captured step without the compiler: {reason}")
        step = CapturedStep(**parts, compile=False)
        step.prepare_graphs(stream)
    return step
