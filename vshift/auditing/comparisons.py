"""Forwards compared module by module: eval mode with itself, and with train mode.

The repeat test and the batch-mates test find what eval mode should not depend on; `first_departure`
finds the module at which the two modes part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vshift.auditing.guard import seed_everything
from vshift.auditing.passes import CANNOT_RUN, AuditedModel, rms
from vshift.auditing.repairs import Repair, applied, hold_in_eval, silence
from vshift.auditing.samples import Batch, Samples, call, main_output, tensors_of
from vshift.auditing.severity import LEAST_CHANGE, output_change
from vshift.shift.modes import noise_modules

SINGLE_SAMPLES = 4  # tried one by one

# ---- two tests of eval mode


@dataclass
class EvalTests:
    """The repeat test and the batch-mates test in eval mode; None and 0 are healthy.

    Attributes:
        repeat_at: the first module whose output differs between two passes over one batch.
        repeat_change: of the model's output, relative; see `output_change`.
        mates_at, mates_change: the same with other samples in the rest of the batch.
        alone_change: of the same samples, one by one.
    """

    repeat_at: str | None = None
    repeat_change: float = 0.0
    mates_at: str | None = None
    mates_change: float = 0.0
    alone_change: float = 0.0


def run_eval_tests(model: AuditedModel, samples: Samples) -> EvalTests:
    """Run the same batch twice, and the same samples with other batch mates and alone."""
    mates = samples.with_other_mates()
    batch, other, rows = mates or (samples.first(), None, None)
    # Seeded once and in one go: noise shows, and so does state kept between calls.
    with model.mode("eval"):
        seed_everything(model.seed)
        first, again = (_digest(model, batch, rows) for _ in range(2))
    tests = EvalTests(*_compare(first, again))
    if other is not None:
        with model.mode("eval"):
            seed_everything(model.seed)
            where, change = _compare(first, _digest(model, other, rows))
        if change > 0:  # a module's own output may differ where the samples' do not
            tests.mates_at, tests.mates_change = where, change
    output, count = first[1], rows or batch.count
    if tests.repeat_at is None and len(output) == count and bool(output.isfinite().all()):
        single = samples.alone(min(SINGLE_SAMPLES, count))
        tests.alone_change = _change_alone(model, output, single)
    return tests


def _change_alone(model: AuditedModel, together: Tensor, single: Sequence[Batch]) -> float:
    """How much outputs change if each sample is a batch of its own; 0 where that cannot run."""
    outputs = []
    for batch in single:
        try:
            with model.mode("eval"), torch.no_grad():
                seed_everything(model.seed)
                outputs.append(main_output(call(model.module, batch.inputs)).detach().cpu())
        except CANNOT_RUN:
            return 0.0
    if not outputs or not all(bool(output.isfinite().all()) for output in outputs):
        return 0.0
    alone = torch.cat(outputs)
    # Other kernels sum in another order: outputs that are nearly the same for all samples would
    # seem to differ by it.
    kind = outputs[0].dtype
    resolution = max(LEAST_CHANGE, 16 * torch.finfo(kind).eps if kind.is_floating_point else 0.0)
    ours, theirs = together[: len(alone)], alone.float()
    if rms(ours - theirs) <= resolution * rms(ours):
        return 0.0
    return output_change(ours, theirs)


# A forward's hash per module in the order in which they end, and the output.
_Digest = tuple[list[tuple[str, int]], Tensor]


def _digest(model: AuditedModel, batch: Batch, rows: int | None = None) -> _Digest:
    """The digest of a batch, or of its first rows."""
    hashes: list[tuple[str, int]] = []

    def part(tensor: Tensor) -> Tensor | None:
        """The first samples' part; images folded into patches stay together."""
        if rows is None:
            return tensor.detach().cpu()
        if tensor.ndim == 0 or len(tensor) % batch.count:
            return None
        return tensor[: len(tensor) // batch.count * rows].detach().cpu()

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        parts = [p for t in tensors_of(output) if (p := part(t)) is not None]
        content = tuple(p.reshape(-1).view(torch.uint8).numpy().tobytes() for p in parts)
        hashes.append((name, hash(content)))

    with torch.no_grad(), model.tracker.tracking(leave=leave):
        output = main_output(call(model.module, batch.inputs))
    own = part(output)
    return hashes, (output.detach().cpu() if own is None else own).float()


def _compare(a: _Digest, b: _Digest) -> tuple[str | None, float]:
    """The first module whose output differs between two runs, if any, and the output's change."""
    (ours, output), (others, other_output) = a, b
    layer = next((one[0] for one, two in zip(ours, others, strict=False) if one != two), None)
    if layer is None and len(ours) != len(others):
        layer = ours[min(len(ours), len(others)) - 1][0]
    return layer, output_change(output, other_output)


# ---- where two modes part

DEPARTS = 0.05  # relative change of an output from inputs that changed by less than a tenth of it
KEPT_VALUES = 1024  # of a module's input or output per sample


@dataclass(frozen=True)
class Departure:
    """The first module that makes another output of the same input in train and in eval mode.

    Attributes:
        layer: its name.
        change: of its output, relative.
        only_in_training, only_in_eval: the modules inside that run in one of the modes only.
    """

    layer: str
    change: float
    only_in_training: Sequence[str]
    only_in_eval: Sequence[str]


@contextmanager
def _forward_of_training(model: AuditedModel, norms: Collection[str]) -> Iterator[None]:
    """The model after its own train(), without noise, and with these batch norms in eval mode.

    What is left of the difference from eval mode is what forward() does by its mode.
    """
    with applied(model, "train", [Repair("", changes=[hold_in_eval(norms), silence])]):
        for module in noise_modules(model.module).values():
            for part in module.modules():
                part.training = False
        yield


def first_departure(
    model: AuditedModel, batch: Batch, norms: Collection[str], random: Collection[str] = ()
) -> Departure | None:
    """Where the two modes part on a batch; None if they do not.

    Args:
        norms: batch norms that use their running statistics in both, as these are judged already.
        random: modules whose noise follows the mode and cannot be switched off.
    """
    with _forward_of_training(model, norms):
        in_training = _record(model, batch)
    with model.mode("eval"):
        in_eval = _record(model, batch)
    for (layer, number), (given, output) in in_training.items():
        inside = f"{layer}.".lstrip(".")
        is_random = any(f"{name}.".startswith(inside) for name in random)
        if is_random or (layer, number) not in in_eval:
            continue
        other_given, other_output = in_eval[layer, number]
        change = _change_between(output, other_output)
        if change > DEPARTS and _change_between(given, other_given) < 0.1 * change:
            return Departure(
                layer,
                change,
                _only_in(in_training, in_eval, inside),
                _only_in(in_eval, in_training, inside),
            )
    return None


def _only_in(ours: _Record, others: _Record, inside: str) -> list[str]:
    """The modules of this prefix that one record has and the other has not."""
    known = {name for name, _ in others}
    names = dict.fromkeys(name for name, _ in ours)
    return [name for name in names if name.startswith(inside) and name not in known]


# A module's input and output in each of its calls, by name and number of the call.
_Record = dict[tuple[str, int], tuple[Tensor | None, Tensor | None]]


def _record(model: AuditedModel, batch: Batch) -> _Record:
    """The calls of a forward, in the order in which they end."""
    record: _Record = {}
    calls: Counter[str] = Counter()
    given: dict[int, Tensor | None] = {}  # by how deep the call is nested

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        given[len(model.tracker.stack)] = _thinned(inputs)

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        record[name, calls[name]] = given[len(model.tracker.stack) + 1], _thinned(output)
        calls[name] += 1

    seed_everything(model.seed)
    with torch.no_grad(), model.tracker.tracking(enter, leave):
        call(model.module, batch.inputs)
    return record


def _change_between(in_training: Tensor | None, in_eval: Tensor | None) -> float:
    """The relative change; 0 where there is nothing to compare."""
    if in_training is None or in_eval is None:
        return 0.0
    return output_change(in_eval, in_training)


def _thinned(tree: Any) -> Tensor | None:
    """Up to KEPT_VALUES values per sample of the first float tensor, [N, D] on the CPU."""
    for tensor in tensors_of(tree):
        if tensor.is_floating_point() and tensor.ndim:
            rows = tensor.detach().float().reshape(len(tensor), -1)
            return rows[:, :: max(1, rows.shape[1] // KEPT_VALUES)].cpu()
    return None
