"""Forwards compared module by module: eval mode with itself, and with train mode.

The repeat test and the batch-mates test find what eval mode should not depend on; `first_departure`
finds the module at which the two modes part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vshift.auditing.guard import seed_everything
from vshift.auditing.passes import CANNOT_RUN, AuditedModel, rms, run_pass
from vshift.auditing.repairs import Repair, applied, hold_in_eval, silence
from vshift.auditing.samples import Batch, Samples, call, main_output, tensors_of
from vshift.auditing.severity import LEAST_CHANGE, Scores, output_change
from vshift.shift.modes import noise_modules

SINGLE_SAMPLES = 4  # tried one by one
# A change of outputs is more than chance above so many times what another choice of batches and of
# noise does; where both sample statistics of a batch or random numbers, they differ by about one.
SPREADS = 3

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
    ours, theirs = together[: len(alone)], alone.float()
    # Outputs that are nearly the same for all samples would seem to differ by rounding.
    if rms(ours - theirs) <= _rounding(outputs[0]) * rms(ours):
        return 0.0
    return output_change(ours, theirs)


def _rounding(tensor: Tensor) -> float:
    """The relative change that other kernels, which sum in another order, make at most."""
    kind = tensor.dtype
    return max(LEAST_CHANGE, 16 * torch.finfo(kind).eps if kind.is_floating_point else 0.0)


def _rows_of(tensor: Tensor, batch: Batch, rows: int | None) -> Tensor | None:
    """The part of the first samples; images folded into patches stay together."""
    if rows is None:
        return tensor.detach()
    if tensor.ndim == 0 or len(tensor) % batch.count:
        return None
    return tensor[: len(tensor) // batch.count * rows].detach()


# A forward's hash per module in the order in which they end, and the output.
_Digest = tuple[list[tuple[str, int]], Tensor]


def _digest(model: AuditedModel, batch: Batch, rows: int | None = None) -> _Digest:
    """The digest of a batch, or of its first rows."""
    hashes: list[tuple[str, int]] = []

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        parts = [p for t in tensors_of(output) if (p := _rows_of(t, batch, rows)) is not None]
        content = tuple(p.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for p in parts)
        hashes.append((name, hash(content)))

    with torch.no_grad(), model.tracker.tracking(leave=leave):
        output = main_output(call(model.module, batch.inputs))
    own = _rows_of(output, batch, rows)
    return hashes, (output.detach() if own is None else own).cpu().float()


def _compare(a: _Digest, b: _Digest) -> tuple[str | None, float]:
    """The first module whose output differs between two runs, if any, and the output's change."""
    (ours, output), (others, other_output) = a, b
    layer = next((one[0] for one, two in zip(ours, others, strict=False) if one != two), None)
    if layer is None and len(ours) != len(others):
        layer = ours[min(len(ours), len(others)) - 1][0]
    return layer, output_change(output, other_output)


# ---- where two modes part

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


def score_forward_of_training(
    model: AuditedModel, samples: Samples, norms: Collection[str]
) -> Scores:
    """Scores of what training computes, without noise and with these norms' running statistics."""
    with _forward_of_training(model, norms):
        return run_pass(model, samples.shuffled, measure=False).scores


def first_departure(
    model: AuditedModel, samples: Samples, norms: Collection[str]
) -> Departure | None:
    """Where the two modes part on a batch, by more than other batches and other noise explain.

    A norm of one's own that uses its batch's statistics in training, and a random operation that
    cannot be switched off, change their output with the batch and the seed; in a healthy model eval
    mode differs from that by about as much. Departures that are small beside another one, as of a
    power iteration, are passed over.

    Args:
        norms: batch norms that use their running statistics in both, as these are judged already.
    """
    first = samples.first()
    batch, other, rows = samples.with_other_mates() or (first, first, None)
    with _forward_of_training(model, norms):
        in_training = _record(model, batch, rows, model.seed)
    with _forward_of_training(model, norms):
        again = _record(model, other, rows, model.seed + 1)
    with model.mode("eval"):
        in_eval = _record(model, batch, rows, model.seed)
    found: list[Departure] = []
    for (layer, number), (given, output) in in_training.items():
        other_given, other_output = in_eval.get((layer, number), (None, None))
        if output is None or other_output is None:
            continue
        chance = _moved(output, again.get((layer, number), (None, None))[1])
        if chance > 0 and output.shape != other_output.shape:  # leaves out parts at random
            continue
        change = _change_between(output, other_output)
        is_clear = not _moved(output, other_output) <= SPREADS * chance  # NaN is clear
        is_first = _change_between(given, other_given) < 0.1 * change
        inside = f"{layer}.".lstrip(".")
        has_one = any(departure.layer.startswith(inside) for departure in found)
        if change > _rounding(output) and is_clear and is_first and not has_one:
            found.append(
                Departure(
                    layer,
                    change,
                    _only_in(in_training, in_eval, inside),
                    _only_in(in_eval, in_training, inside),
                )
            )
    largest = max((departure.change for departure in found), default=0.0)
    return next((departure for departure in found if departure.change >= 0.2 * largest), None)


def _only_in(ours: _Record, others: _Record, inside: str) -> list[str]:
    """The modules of this prefix that one record has and the other has not."""
    known = {name for name, _ in others}
    names = dict.fromkeys(name for name, _ in ours)
    return [name for name in names if name.startswith(inside) and name not in known]


# A module's input and output in each of its calls, by name and number of the call.
_Record = dict[tuple[str, int], tuple[Tensor | None, Tensor | None]]


def _record(model: AuditedModel, batch: Batch, rows: int | None, seed: int) -> _Record:
    """The calls of a forward, in the order in which they end, with the first rows of each."""
    record: _Record = {}
    calls: Counter[str] = Counter()
    given: dict[int, Tensor | None] = {}  # by how deep the call is nested

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        given[len(model.tracker.stack)] = _thinned(inputs, batch, rows)

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        kept = _thinned(output, batch, rows)
        record[name, calls[name]] = given[len(model.tracker.stack) + 1], kept
        calls[name] += 1

    seed_everything(seed)
    with torch.no_grad(), model.tracker.tracking(enter, leave):
        call(model.module, batch.inputs)
    return record


def _change_between(in_training: Tensor | None, in_eval: Tensor | None) -> float:
    """The relative change; 0 where there is nothing to compare."""
    if in_training is None or in_eval is None:
        return 0.0
    return output_change(in_eval.float(), in_training.float())


def _moved(output: Tensor, other: Tensor | None) -> float:
    """The RMS difference; 0 where there is nothing to compare."""
    if other is None:
        return 0.0
    if output.shape != other.shape:
        return math.inf
    return rms(output.float() - other.float())


def _thinned(tree: Any, batch: Batch, rows: int | None) -> Tensor | None:
    """Up to KEPT_VALUES values per sample of the first float tensor, [N, D] on the CPU."""
    for tensor in tensors_of(tree):
        if tensor.is_floating_point() and tensor.ndim:
            own = _rows_of(tensor, batch, rows)
            kept = tensor.detach() if own is None else own
            flat = kept.reshape(len(kept), -1)
            return flat[:, :: max(1, flat.shape[1] // KEPT_VALUES)].cpu()
    return None
