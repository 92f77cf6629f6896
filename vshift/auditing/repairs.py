"""Repairs, tried on the model and taken back: what they gain is a finding's severity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.passes import AuditedModel, Mode, run_pass
from vshift.auditing.samples import Samples
from vshift.auditing.severity import Scores
from vshift.auditing.trace import Silenced
from vshift.networks.norm import BatchNorm
from vshift.shift.stats import Moments

# Changes a model that is in eval mode. The model restores parameters, buffers and modes; anything
# else to undo goes on the stack.
Change = Callable[[AuditedModel, ExitStack], None]


@dataclass(frozen=True)
class Repair:
    """Changes to a model for a pass in eval mode.

    Attributes:
        words: what is done, as in "… takes the loss from 2 to 1".
        statistics: running statistics by layer; these and `buffers` are what `--fix` writes.
        buffers: other buffers by their full name.
        changes: of anything else, for the pass only.
        change_inputs: applied to the inputs.
    """

    words: str
    statistics: Mapping[str, Moments] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    changes: Sequence[Change] = ()
    change_inputs: Callable[[Any], Any] | None = None


def try_repairs(model: AuditedModel, samples: Samples, repairs: Sequence[Repair]) -> Scores:
    """Scores in eval mode with all these repairs, the later ones winning."""
    changes = [r.change_inputs for r in repairs if r.change_inputs is not None]

    def change_inputs(inputs: Any) -> Any:
        return reduce(lambda value, change: change(value), changes, inputs)

    with applied(model, "eval", repairs):
        return run_pass(model, samples.shuffled, measure=False, change_inputs=change_inputs).scores


@contextmanager
def applied(model: AuditedModel, mode: Mode, repairs: Sequence[Repair]) -> Iterator[None]:
    """The model in the mode of a pass with all these repairs, but for those of the inputs."""
    with ExitStack() as stack:
        stack.enter_context(model.mode(mode))
        for repair in repairs:
            for name, value in repair.buffers.items():
                with torch.no_grad():
                    model.module.get_buffer(name).copy_(value)
            for name, moments in repair.statistics.items():
                set_statistics(model.norms[name], moments)
            for change in repair.changes:
                change(model, stack)
        yield


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


# ---- changes


def set_mode(names: Iterable[str], training: bool) -> Change:
    """Put modules into training or eval mode."""

    def change(model: AuditedModel, stack: ExitStack) -> None:
        for name in names:
            model.modules[name].training = training

    return change


def hold_in_eval(names: Iterable[str]) -> Change:
    """Put modules into eval mode whenever they run, whatever a forward sets."""

    def change(model: AuditedModel, stack: ExitStack) -> None:
        def hold(module: nn.Module, inputs: Any) -> None:
            module.training = False

        for name in names:
            stack.callback(model.modules[name].register_forward_pre_hook(hold).remove)

    return change


def set_eps(eps: Mapping[str, float]) -> Change:
    """Give batch norms another eps."""

    def change(model: AuditedModel, stack: ExitStack) -> None:
        for name, value in eps.items():
            model.norms[name].eps = value

    return change


def set_running(statistics: Mapping[str, Moments]) -> Change:
    """Give batch norms other running statistics, which `--fix` does not write."""

    def change(model: AuditedModel, stack: ExitStack) -> None:
        for name, moments in statistics.items():
            set_statistics(model.norms[name], moments)

    return change


def statistics_by_call(name: str, moments: Sequence[Moments]) -> Change:
    """Give each call of a layer in a forward statistics of its own."""

    def change(model: AuditedModel, stack: ExitStack) -> None:
        calls = 0

        def switch(layer: nn.Module, inputs: Any) -> None:
            nonlocal calls
            assert isinstance(layer, _BatchNorm)
            set_statistics(layer, moments[calls % len(moments)])
            calls += 1

        stack.callback(model.norms[name].register_forward_pre_hook(switch).remove)

    return change


def scale_outputs(factors: Mapping[str, float]) -> Change:
    """Multiply the outputs of modules."""

    def change(model: AuditedModel, stack: ExitStack) -> None:
        for name, factor in factors.items():
            hook = model.modules[name].register_forward_hook(
                lambda module, inputs, output, factor=factor: output * factor
            )
            stack.callback(hook.remove)

    return change


def silence(model: AuditedModel, stack: ExitStack) -> None:
    """Switch off functional dropout and attention dropout."""
    stack.enter_context(Silenced())


def eval_hidden(statistics: Mapping[str, Moments]) -> Change:
    """Put modules that eval() does not reach into eval mode as they run, with these statistics."""

    def switch(name: str, module: nn.Module) -> None:
        module.training = False
        if isinstance(module, _BatchNorm) and name in statistics:
            set_statistics(module, statistics[name])

    def change(model: AuditedModel, stack: ExitStack) -> None:
        model.tracker.on_hidden = switch
        stack.callback(setattr, model.tracker, "on_hidden", None)

    return change
