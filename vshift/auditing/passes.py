"""The three passes over the same samples, from which every conclusion is drawn.

- train pass: the model after its own `train()`; BN on batch statistics, noise on.
- noise-off pass: the model after its own `eval()`, but BN on batch statistics.
- eval pass: the model after its own `eval()`.

Where the train pass disagrees with the running statistics, the buffers are wrong, and it names the
layer, as every layer before it normalises by what it really gets. Where it agrees and the noise-off
pass does not, noise shifts the layer. Where only the eval pass is off, the layer inherits it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.guard import SavedState, seed_everything
from vshift.auditing.names import plain_name
from vshift.auditing.samples import AuditError, Batch, Samples, call, main_output, tensors_of
from vshift.auditing.severity import Loss, Scorer, Scores, output_change
from vshift.auditing.trace import ModuleTracker, Silenced, Trace, trace
from vshift.shift.modes import noise_modules
from vshift.shift.stats import Moments, batch_moments
from vshift.text import join_words

# What a model raises that cannot be run in training mode on inputs alone.
CANNOT_RUN = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, AuditError)
TRACED_SAMPLES = 8  # enough to see where noise goes
SAME_ROWS = 0.01  # relative change by another order of the rows; low precision rounds by less

Mode = Literal["train", "noise_off", "eval"]
T = TypeVar("T")


class AuditedModel:
    """The model under audit and what every pass over it needs.

    Attributes:
        frozen: batch norms that are in eval mode in training too.
        given_training: every module's mode as it was handed over.
        changed_by_switch: modules in which calling `train()` and `eval()` changes more than modes.
        leaves_only: whether the train pass switches leaf modules instead of calling `train()`.
        notes: what was done differently from usual, for the user.
    """

    def __init__(self, module: nn.Module, seed: int = 0, loss: Loss | None = None) -> None:
        self.module, self.seed, self.loss = module, seed, loss
        self.saved = SavedState(module)
        self.tracker = ModuleTracker(module, self.saved)
        self.leaves_only = False
        self.notes: list[str] = []
        self.given_training = {name: m.training for name, m in module.named_modules()}
        frozen = self._frozen_by_hand()
        try:
            module.train()
            self.frozen = frozenset(frozen | {n for n, m in self.norms.items() if not m.training})
            module.eval()
            module.train(self.given_training[""])
            self.changed_by_switch = list(
                dict.fromkeys(map(plain_name, self.saved.changed_modules(module)))
            )
        finally:
            self.saved.restore()

    def _frozen_by_hand(self) -> set[str]:
        """Batch norms in eval mode inside of a module in training mode, or that do not train.

        A part that is in eval mode as a whole, as a model that was wrapped after its `eval()`, is
        no such choice: the first `train()` switches it.
        """
        modules = self.modules
        return {
            name
            for name, layer in self.norms.items()
            if self.module.training
            and not layer.training
            and (
                getattr(modules.get(name.rpartition(".")[0]), "training", True)
                or not any(p.requires_grad for p in layer.parameters())
            )
        }

    @property
    def is_mixed(self) -> bool:
        """Whether the model was given in eval mode and some of its modules in training mode."""
        return not self.given_training[""] and any(self.given_training.values())

    @contextmanager
    def as_given(self, *, switched: bool = False) -> Iterator[None]:
        """The model as it was handed over, also after `train()` and `eval()` have been called."""
        try:
            if switched:
                self.module.train()
                self.module.eval()
                self.module.train(self.given_training[""])
                for name, module in self.module.named_modules():
                    module.training = self.given_training.get(name, module.training)
            yield
        finally:
            self.saved.restore()

    @property
    def registered(self) -> dict[str, nn.Module]:
        """Every module that eval() reaches, by name."""
        return {plain_name(name): module for name, module in self.module.named_modules()}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by name, including those that eval() does not reach."""
        return self.registered | self.tracker.hidden

    @property
    def norms(self) -> dict[str, _BatchNorm]:
        """Every batch norm by name, including those that eval() does not reach."""
        return {name: m for name, m in self.modules.items() if isinstance(m, _BatchNorm)}

    @contextmanager
    def mode(self, mode: Mode) -> Iterator[None]:
        """Put the model into the mode of one of the three passes; restore everything on exit."""
        try:
            if mode == "train" and not self.leaves_only:
                self.module.train()
                for name in self.frozen:
                    self.norms[name].training = False
            else:
                self.module.eval()
                if mode == "train":
                    for module in self.module.modules():
                        module.training |= next(module.children(), None) is None
                if mode != "eval":
                    for name, layer in self.norms.items():
                        layer.training = name not in self.frozen
            yield
        finally:
            self.saved.restore()

    def run_in(self, mode: Mode, run: Callable[[], T]) -> T:
        """Run in a mode; if the model's own train() cannot run, switch leaf modules instead.

        Such are auxiliary heads that want larger images, and losses that want targets.
        """
        if mode == "train" and not self.leaves_only:
            try:
                with self.mode("train"):
                    return run()
            except CANNOT_RUN:
                self.leaves_only = True
                self.notes.append(
                    "the model does not run on these inputs after its own train(); noise and batch "
                    "norm were switched to training one by one instead, everything else stayed in "
                    "eval mode"
                )
        with self.mode(mode):
            return run()

    def rows_are_samples(self, samples: Samples) -> bool:
        """Whether batches may be cut and mixed: in another order, rows give the same outputs.

        Not so where the rows are time steps, the nodes of a graph, or blocks that belong together.

        Raises:
            AuditError: the types of inputs and parameters do not go together.
        """
        batch = samples.batches[0]
        with self.mode("eval"):
            seed_everything(self.seed)
            output = self._first_output(batch)
        if not samples.rows_are_samples or len(output) != batch.count:
            return False
        first = tensors_of(batch.inputs)[0]
        if first.ndim == 3 and any(m.batch_first is False for m in self._sequential_modules()):
            return False
        # Not reversed, which leaves blocks of rows together.
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(batch.count, generator=generator)
        turned = batch.select(lambda tensor: tensor.index_select(0, order.to(tensor.device)))
        expected = output.index_select(0, order.to(output.device))
        try:
            if output_change(expected, self._output_in_eval(turned)) < SAME_ROWS:
                return self._order_is_free_in_training(batch, turned, order)
            # Noise or a counter in eval mode: the order cannot be tried.
            return not torch.equal(output, self._output_in_eval(batch))
        except CANNOT_RUN:
            return False

    def _output_in_eval(self, batch: Batch) -> Tensor:
        """The output of a batch, with other noise than that of `_first_output`."""
        with self.mode("eval"):
            seed_everything(self.seed + 1)
            return main_output(call(self.module, batch.inputs)).detach().float()

    def _order_is_free_in_training(self, batch: Batch, turned: Batch, order: Tensor) -> bool:
        """The same in training mode, where halves of a batch may have batch norms of their own.

        True as well where noise that cannot be switched off, or an error, hides it.
        """
        noise = noise_modules(self.module).values()
        outputs = []
        try:
            for each in (batch, turned, batch):
                with self.mode("train"), Silenced():
                    for module in noise:
                        module.eval()
                    seed_everything(self.seed)
                    outputs.append(main_output(call(self.module, each.inputs)).detach().float())
                if len(outputs) == 2:
                    moved = outputs[0].index_select(0, order.to(outputs[0].device))
                    if output_change(moved, outputs[1]) < SAME_ROWS:
                        return True
        except CANNOT_RUN:
            return True
        return not torch.equal(outputs[0], outputs[2])

    def _sequential_modules(self) -> Iterator[Any]:
        return (m for m in self.module.modules() if hasattr(m, "batch_first"))

    def _first_output(self, batch: Batch) -> Tensor:
        try:
            return main_output(call(self.module, batch.inputs)).detach().float()
        except RuntimeError as error:
            types = {str(t.dtype) for t in tensors_of(batch.inputs) if t.is_floating_point()}
            own = {str(p.dtype) for p in self.module.parameters() if p.is_floating_point()}
            if "type" not in str(error) or not types or types == own:
                raise
            raise AuditError(
                f"the inputs are {join_words(sorted(types))} and the parameters "
                f"{join_words(sorted(own))}: convert the one or the other "
                f"({str(error).splitlines()[0]})"
            ) from error

    def trace(self, mode: Mode, samples: Samples) -> Trace:
        """Trace the noise of a few samples."""
        # A program exported for one batch size takes whole batches only.
        whole = isinstance(self.module, GraphModule)
        batch = samples.first() if whole else samples.few(TRACED_SAMPLES)

        def run() -> Trace:
            seed_everything(self.seed)
            return trace(self.module, batch, self.tracker)

        return self.run_in(mode, run)

    def run(self, mode: Mode, batches: Callable[[], Iterator[Batch]]) -> Pass:
        """One pass over batches."""
        return self.run_in(mode, lambda: run_pass(self, batches))


# ---- one pass


class LayerStats:
    """One layer's input in one pass: mean and UNBIASED variance [C] in each batch and call.

    They stay on the input's device, without a synchronisation, until a result is asked for.

    Attributes:
        count: values per channel in one batch and call, in the first batch.
        calls: how often the layer runs in one forward.
    """

    def __init__(self, count: int) -> None:
        self.count, self.calls = count, 0
        self._keys: list[tuple[int, int]] = []  # batch, call in its forward
        self._rows: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: int, mean: Tensor, variance: Tensor) -> None:
        last, call = self._keys[-1] if self._keys else (batch, -1)
        call = call + 1 if last == batch else 0
        self.calls = max(self.calls, call + 1)
        self._keys.append((batch, call))
        self._rows.append((mean, variance))

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        means, variances = zip(*self._rows, strict=True)
        return torch.stack(means).cpu().double(), torch.stack(variances).cpu().double()

    def _stacked(
        self, call: int | None = None, batches: Collection[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        means, variances = self._all
        rows = [
            i
            for i, key in enumerate(self._keys)
            if call in (None, key[1]) and (batches is None or key[0] in batches)
        ]
        return means[rows], variances[rows]

    def average(self, call: int | None = None, batches: Collection[int] | None = None) -> Moments:
        """Means and variances averaged over (these) batches, as a moving average estimates them."""
        means, variances = self._stacked(call, batches)
        return Moments(means.mean(0), variances.mean(0))

    def moving_average(self, momentum: float | None) -> Moments:
        """The limit of a moving average over these batches in this order, repeated."""
        if momentum is None:
            return self.average()
        means, variances = self._stacked()
        age = torch.arange(len(means) - 1, -1, -1, dtype=torch.float64)
        weights = torch.pow(torch.as_tensor(1.0 - momentum, dtype=torch.float64), age)
        weights = (weights / weights.sum())[:, None]
        return Moments((weights * means).sum(0), (weights * variances).sum(0))

    def deviations(self, eps: float) -> tuple[Tensor, Tensor]:
        """The batches' means and log variances about their averages, [B, C] each.

        Standardised as `distances.standardized_distance` does.
        """
        means, variances = self._stacked()
        scale = (variances.mean(0) + eps).sqrt()
        logs = (variances + eps).log() / math.sqrt(2)
        return (means - means.mean(0)) / scale, logs - logs.mean(0)

    def levels(self) -> Tensor:
        """Channel mean of the variance in each batch, [B], all calls of a batch averaged."""
        levels = [variance.mean() for variance in self._all[1]]
        batches = groupby(range(len(levels)), key=lambda i: self._keys[i][0])
        return torch.stack([torch.stack([levels[i] for i in rows]).mean() for _, rows in batches])


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


@dataclass
class Pass:
    """The statistics of every BN's input in one pass, by name, and its scores."""

    stats: dict[str, LayerStats]
    scores: Scores

    def average(self, name: str) -> Moments | None:
        """A layer's statistics averaged over batches; None if it did not run."""
        return self.stats[name].average() if name in self.stats else None


@torch.no_grad()
def run_pass(
    model: AuditedModel,
    batches: Callable[[], Iterator[Batch]],
    *,
    measure: bool = True,
    change_inputs: Callable[[Any], Any] | None = None,
) -> Pass:
    """Run one pass in the model's present mode.

    Args:
        measure: take statistics of every BN's input.
        change_inputs: applied to every batch's inputs.
    """
    meter = _InputMeter()
    scorer = Scorer(model.loss)
    seed_everything(model.seed)
    with model.tracker.tracking(*((meter.enter, meter.leave) if measure else ())):
        for index, batch in enumerate(batches()):
            meter.batch = index
            inputs = batch.inputs if change_inputs is None else change_inputs(batch.inputs)
            scorer.add(main_output(call(model.module, inputs)), batch.labels)
    return Pass(meter.stats, scorer.take())


class _InputMeter:
    """Statistics of BN inputs, at no cost where a layer computes them anyway.

    In training mode with momentum 1 a batch norm writes the batch's mean and unbiased variance into
    its buffers. A layer's first call is checked against the input itself, so that a custom module
    is measured by hand.
    """

    def __init__(self) -> None:
        self.stats: dict[str, LayerStats] = {}
        self.batch = 0
        self._buffers_agree: dict[str, bool] = {}

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        if not isinstance(module, _BatchNorm) or not inputs:
            return
        if _writes_buffers(module) and self._buffers_agree.get(name, True):
            module.momentum = 1.0
            # Zeros: 0 · NaN would be NaN.
            for buffer in (module.running_mean, module.running_var):
                assert buffer is not None
                buffer.zero_()
        else:
            self._add(name, *_measure(inputs[0]))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(module, _BatchNorm) or not inputs or not _writes_buffers(module):
            return
        assert module.running_mean is not None
        assert module.running_var is not None
        x = inputs[0]
        mean, variance = module.running_mean.clone(), module.running_var.clone()
        if name not in self._buffers_agree:
            measured = _measure(x)
            parts = sum(isinstance(m, _BatchNorm) for m in module.modules())
            # A layer with batch norms inside may leave all of a batch but its first part to them.
            own = measured if parts == 1 else _measure(x[: max(1, len(x) // parts)])
            self._buffers_agree[name] = any(
                _close(mean, found[0]) and _close(variance, found[1]) for found in (measured, own)
            )
            if not self._buffers_agree[name]:
                self._add(name, *measured)
        if self._buffers_agree[name]:
            self._add(name, mean, variance, x.numel() // x.shape[1])

    def _add(self, name: str, mean: Tensor, variance: Tensor, count: int) -> None:
        self.stats.setdefault(name, LayerStats(count)).add(self.batch, mean, variance)


def _writes_buffers(module: _BatchNorm) -> bool:
    return module.training and module.running_mean is not None


def _measure(x: Tensor) -> tuple[Tensor, Tensor, int]:
    mean, variance = batch_moments(x)
    count = x.numel() // max(x.shape[1], 1)
    return mean, variance * (count / max(count - 1, 1)), count


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max().clamp(min=1e-12))
    return a.shape == b.shape and float((a.double() - b.double()).abs().max()) < 1e-2 * scale
