"""The three probes: batch statistics with noise on, with noise off, and plain eval.

A. `as_trained`: the model after its own `train()`: BN on batch statistics, noise on.
B. `noise_off`: the model after its own `eval()`, but BN on batch statistics.
C. `evaluated`: the model after its own `eval()`.

Where A disagrees with the running statistics, the buffers are wrong, and A names the layer, as
every layer before it normalises by what it really gets. Where A fits and B does not, noise shifts
the layer. Where only C is off, the layer inherits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.guard import Guard, seed_everything
from vshift.auditing.moments import LayerStats
from vshift.auditing.samples import AuditError, Batch, Samples, call, main_output
from vshift.auditing.scores import Loss, Scorer, Scores
from vshift.auditing.watch import Names, Watch
from vshift.shift.stats import batch_moments

# What a model raises that cannot be run in training mode on inputs alone.
CANNOT_RUN = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, AuditError)
Mode = Literal["as_trained", "noise_off", "evaluated"]


@dataclass
class Subject:
    """The model under audit and what every pass over it needs."""

    model: nn.Module
    guard: Guard
    names: Names
    watch: Watch
    seed: int
    loss: Loss | None = None
    frozen: frozenset[str] = frozenset()
    leaves_only: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def norms(self) -> dict[str, _BatchNorm]:
        """Every batch norm by name, those included that eval() does not reach."""
        found = {n: m for n, m in self.model.named_modules() if isinstance(m, _BatchNorm)}
        hidden = self.names.hidden.items()
        return found | {n: m for n, m in hidden if isinstance(m, _BatchNorm)}

    def switch_leaves(self) -> None:
        """From now on "as trained" switches leaf modules one by one; for a model whose own train()
        does not run: auxiliary heads that want larger images, losses that want targets."""
        self.leaves_only = True
        self.notes.append(
            "the model does not run on these inputs after its own train(); noise and batch norm "
            "were switched to training one by one instead, everything else stayed in eval mode"
        )

    @contextmanager
    def mode(self, mode: Mode) -> Iterator[None]:
        """Put the model into one of the three; afterwards everything is restored."""
        try:
            if mode == "as_trained" and not self.leaves_only:
                self.model.train()
                for name in self.frozen:
                    self.norms[name].training = False
            else:
                self.model.eval()
                if mode == "as_trained":
                    self._train_leaves()
                if mode != "evaluated":
                    self._use_batches()
            yield
        finally:
            self.guard.restore()

    def _train_leaves(self) -> None:
        for module in self.model.modules():
            if not any(True for _ in module.children()):
                module.training = True

    def _use_batches(self) -> None:
        for name, layer in self.norms.items():
            layer.training = name not in self.frozen


def make_subject(model: nn.Module, seed: int, loss: Loss | None) -> Subject:
    """Takes in the model's state, and which BN its own `train()` leaves in eval mode."""
    guard, names = Guard(model), Names(model)
    subject = Subject(model, guard, names, Watch(names, guard), seed, loss)
    given = {name for name, layer in subject.norms.items() if not layer.training}
    partly = model.training and any(layer.training for layer in subject.norms.values())
    try:
        model.train()
        held = {name for name, layer in subject.norms.items() if not layer.training}
    finally:
        guard.restore()
    # A model given in train mode with some BN in eval mode: somebody froze those by hand.
    subject.frozen = frozenset(held | (given if partly or model.training else set()))
    return subject


@dataclass
class Pass:
    """What one pass showed: statistics of every BN's input by name, and scores."""

    stats: dict[str, LayerStats]
    scores: Scores


@torch.no_grad()
def run_pass(
    subject: Subject,
    batches: Callable[[], Iterator[Batch]],
    *,
    measure: bool = True,
    change: Callable[[Any], Any] | None = None,
) -> Pass:
    """One pass in the model's present mode.

    Args:
        measure: take statistics of every BN's input.
        change: applied to every batch's inputs.
    """
    meter = _Meter(subject)
    scorer = Scorer(subject.loss)
    seed_everything(subject.seed)
    with subject.watch.watching(*((meter.enter, meter.leave) if measure else ())):
        for index, batch in enumerate(batches()):
            meter.batch = index
            inputs = batch.inputs if change is None else change(batch.inputs)
            scorer.add(main_output(call(subject.model, inputs)), batch.labels)
    for stats in meter.found.values():
        stats.settle()
    return Pass(meter.found, scorer.take())


class _Meter:
    """Statistics of BN inputs, for nothing where a layer computes them anyway.

    In training mode with momentum 1 a batch norm writes the batch's mean and unbiased variance into
    its buffers, out of the reduction it does in any case. A layer's first call is checked against
    the input itself, so that a module with ways of its own is measured by hand.
    """

    def __init__(self, subject: Subject) -> None:
        self.found: dict[str, LayerStats] = {}
        self.batch = 0
        self._by_buffers: dict[str, bool] = {}

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        if not isinstance(module, _BatchNorm) or not inputs:
            return
        if not self._tells_itself(module):
            self._add(name, *_by_hand(inputs[0]))
        elif self._by_buffers.get(name, True):
            module.momentum = 1.0
            # Zeros: 0 · NaN would be NaN.
            for buffer in (module.running_mean, module.running_var):
                assert buffer is not None
                buffer.zero_()
        else:
            self._add(name, *_by_hand(inputs[0]))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(module, _BatchNorm) or not inputs or not self._tells_itself(module):
            return
        assert module.running_mean is not None
        assert module.running_var is not None
        x = inputs[0]
        mean, variance = module.running_mean.clone(), module.running_var.clone()
        if name not in self._by_buffers:
            right = _by_hand(x)
            self._by_buffers[name] = _close(mean, right[0]) and _close(variance, right[1])
            if not self._by_buffers[name]:
                self._add(name, *right)
        if self._by_buffers[name]:
            self._add(name, mean, variance, x.numel() // x.shape[1])

    def _tells_itself(self, module: _BatchNorm) -> bool:
        return module.training and module.running_mean is not None

    def _add(self, name: str, mean: Tensor, variance: Tensor, count: int) -> None:
        self.found.setdefault(name, LayerStats()).add(self.batch, mean, variance, count)


def _by_hand(x: Tensor) -> tuple[Tensor, Tensor, int]:
    mean, variance = batch_moments(x)
    count = x.numel() // max(x.shape[1], 1)
    return mean, variance * (count / max(count - 1, 1)), count


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max().clamp(min=1e-12))
    return a.shape == b.shape and float((a.double() - b.double()).abs().max()) < 1e-2 * scale


@dataclass
class Probes:
    """The three passes over the same samples."""

    trained: Pass
    quiet: Pass
    plain: Pass


def run_probes(subject: Subject, samples: Samples) -> Probes:
    """A, B and C. Where the model's own train() cannot run, A switches leaf modules only."""
    return Probes(
        _as_trained(subject, samples),
        _in(subject, samples, "noise_off"),
        _in(subject, samples, "evaluated"),
    )


def _in(subject: Subject, samples: Samples, mode: Mode) -> Pass:
    with subject.mode(mode):
        return run_pass(subject, samples.probed)


def _as_trained(subject: Subject, samples: Samples) -> Pass:
    if not subject.leaves_only:
        with suppress(*CANNOT_RUN):
            return _in(subject, samples, "as_trained")
        subject.switch_leaves()
    return _in(subject, samples, "as_trained")
