"""Forwards compared module by module: eval mode with itself, and with train mode.

The repeat test and the batch-mates test find what eval mode should not depend on; `first_departure`
finds the module at which the two modes part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vshift.auditing.guard import seed_everything
from vshift.auditing.passes import CANNOT_RUN, AuditedModel
from vshift.auditing.samples import Batch, Samples, call, main_output, tensors_of
from vshift.auditing.severity import output_change

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
                outputs.append(main_output(call(model.module, batch.inputs)).detach().float().cpu())
        except CANNOT_RUN:
            return 0.0
    if not outputs or not all(bool(output.isfinite().all()) for output in outputs):
        return 0.0
    alone = torch.cat(outputs)
    return output_change(together[: len(alone)], alone)


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


def first_departure(
    model: AuditedModel, batch: Batch, fitting: Collection[str]
) -> tuple[str, float] | None:
    """The first module that makes another output of the same input in train and in eval mode.

    Args:
        fitting: batch norms that do so by the noise of a batch alone.

    Returns:
        Its name and the relative change of its output; None if there is none.
    """
    records: list[list[tuple[str, Tensor | None, Tensor | None]]] = []
    for mode in ("train", "eval"):
        found: list[tuple[str, Tensor | None, Tensor | None]] = []
        entered: list[Tensor | None] = []

        def enter(name: str, module: nn.Module, inputs: Any, entered: Any = entered) -> None:
            entered.append(_thinned(inputs))

        def leave(
            name: str, module: nn.Module, inputs: Any, output: Any, found: Any = found,
            entered: Any = entered,
        ) -> None:  # fmt: skip
            found.append((name, entered.pop() if entered else None, _thinned(output)))

        def run(enter: Any = enter, leave: Any = leave) -> None:
            seed_everything(model.seed)
            with torch.no_grad(), model.tracker.tracking(enter, leave):
                call(model.module, batch.inputs)

        model.run_in(mode, run)
        records.append(found)
    in_training, in_eval = records
    for (name, x, y), (other, z, w) in zip(in_training, in_eval, strict=False):
        if name != other:
            return None  # other modules run: there is no pair to compare
        if x is None or y is None or z is None or w is None or name in fitting:
            continue
        change = output_change(w, y)
        if change > DEPARTS and output_change(z, x) < 0.1 * change:
            return name, change
    return None


def _thinned(tree: Any) -> Tensor | None:
    """Up to KEPT_VALUES values per sample of the first float tensor, [N, D] on the CPU."""
    for tensor in tensors_of(tree):
        if tensor.is_floating_point() and tensor.ndim:
            rows = tensor.detach().float().reshape(len(tensor), -1)
            return rows[:, :: max(1, rows.shape[1] // KEPT_VALUES)].cpu()
    return None
