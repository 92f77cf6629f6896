"""Repairs, tried on the model and undone: what they give back is a finding's severity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.noise import silenced
from vshift.auditing.probes import Pass, Subject, run_pass
from vshift.auditing.samples import Samples
from vshift.networks.norm import BatchNorm
from vshift.shift.stats import Moments


@dataclass(frozen=True)
class Repair:
    """What is changed while a pass in eval mode runs.

    Attributes:
        words: as in "… takes the loss from 2 to 1".
        statistics: running statistics by layer.
        by_call: statistics for each call of a layer that runs several times in a forward.
        eps: by layer.
        buffers: other buffers, by their whole name.
        awake: modules to put into training mode, by name.
        scale: factors on modules' outputs, by name.
        quiet: modules to put into eval mode, by name; `hidden` those that nobody knows beforehand.
        silence: functional dropout and attention dropout do nothing.
        change: applied to the inputs.
    """

    words: str
    statistics: Mapping[str, Moments] = field(default_factory=dict)
    by_call: Mapping[str, Sequence[Moments]] = field(default_factory=dict)
    eps: Mapping[str, float] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    awake: Sequence[str] = ()
    scale: Mapping[str, float] = field(default_factory=dict)
    quiet: Sequence[str] = ()
    hidden: bool = False
    silence: bool = False
    change: Callable[[Any], Any] | None = None


@contextmanager
def repaired(subject: Subject, repairs: Sequence[Repair]) -> Iterator[None]:
    """Eval mode with all these repairs, the later ones winning; taken back afterwards."""
    with ExitStack() as stack:
        stack.enter_context(subject.mode("evaluated"))
        modules = dict(subject.model.named_modules()) | subject.names.hidden
        for repair in repairs:
            for name in repair.quiet:
                modules[name].training = False
            for name in repair.awake:
                modules[name].training = True
            for name, value in repair.buffers.items():
                subject.model.get_buffer(name).copy_(value)
            for name, moments in repair.statistics.items():
                set_statistics(subject.norms[name], moments)
            for name, eps in repair.eps.items():
                subject.norms[name].eps = eps
        subject.watch.quiet_hidden = any(repair.hidden for repair in repairs)
        stack.callback(setattr, subject.watch, "quiet_hidden", False)
        stack.enter_context(silenced(any(repair.silence for repair in repairs)))
        factors = {name: f for repair in repairs for name, f in repair.scale.items()}
        stack.enter_context(_scaled(modules, factors))
        by_call = {name: m for repair in repairs for name, m in repair.by_call.items()}
        stack.enter_context(_switching(subject.norms, by_call))
        yield


def try_repairs(subject: Subject, samples: Samples, repairs: Sequence[Repair]) -> Pass:
    """A pass in eval mode with the repairs."""
    changes = [repair.change for repair in repairs if repair.change is not None]

    def change(inputs: Any) -> Any:
        for one in changes:
            inputs = one(inputs)
        return inputs

    with repaired(subject, repairs):
        return run_pass(subject, samples.probed, measure=False, change=change)


@torch.no_grad()
def set_statistics(layer: _BatchNorm, moments: Moments) -> None:
    """Let a layer normalise by these in eval mode, even one that keeps no statistics."""
    for name, value in (("running_mean", moments.mean), ("running_var", moments.variance)):
        buffer = getattr(layer, name)
        if buffer is None:
            like = next(layer.parameters(), torch.zeros(()))
            setattr(layer, name, value.to(like.device, like.dtype))
        else:
            buffer.copy_(value)
    if isinstance(layer, BatchNorm):
        layer.evaluate = "running"


@contextmanager
def _switching(
    norms: Mapping[str, _BatchNorm], by_call: Mapping[str, Sequence[Moments]]
) -> Iterator[None]:
    """Each call of these layers in a forward gets statistics of its own."""
    handles = [
        norms[name].register_forward_pre_hook(_Switch(moments)) for name, moments in by_call.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _scaled(modules: Mapping[str, nn.Module], factors: Mapping[str, float]) -> Iterator[None]:
    """The outputs of these modules, multiplied."""

    def times(factor: float) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, inputs, output: output * factor

    handles = [modules[n].register_forward_hook(times(f)) for n, f in factors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Switch:
    def __init__(self, moments: Sequence[Moments]) -> None:
        self.moments, self.calls = moments, 0

    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        assert isinstance(layer, _BatchNorm)
        set_statistics(layer, self.moments[self.calls % len(self.moments)])
        self.calls += 1
