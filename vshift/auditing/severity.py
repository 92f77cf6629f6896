"""Scores of a pass, and severity: what a repair measurably gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vshift.auditing.samples import AuditError
from vshift.text import supported_decimals

# Mean or per-sample loss from (output, labels).
Loss = Callable[[Tensor, Tensor], Tensor | float]

SEVERITIES = ("info", "low", "medium", "high")
LEAST_CHANGE = 1e-3  # of the output; less may be the rounding of another order of sums
LEAST_FALL = 0.01  # nats; a smaller fall of the cross-entropy does not count
OUTPUT_VALUES = 4096  # kept per sample; dense outputs are thinned out to this number
CHANCE = 0.0005  # p of a test: eval mode is compared with two others, 1 in 1,000 together
FEW_BATCHES = 8  # fewer say too little of how much batches differ


@dataclass(frozen=True)
class Scores:
    """Scores of one pass over n samples.

    Attributes:
        losses: float64 [n], or [batches] if the loss returns one number per batch; None without
            labels.
        hits: float64 [n] of 0 and 1, for dense labels the fraction that is right; None if nothing
            is classified.
        outputs: float32 [n, D], thinned out to at most 4,096 values per sample.
        unused: why the given labels could not be used; None if they were.
        sizes: rows of `outputs` per batch.
    """

    losses: Tensor | None
    hits: Tensor | None
    outputs: Tensor
    unused: str | None = None
    sizes: Sequence[int] = ()

    @property
    def loss(self) -> float | None:
        return None if self.losses is None else float(self.losses.mean())

    @property
    def accuracy(self) -> float | None:
        """Percent."""
        return None if self.hits is None else 100 * float(self.hits.mean())

    @property
    def finite(self) -> bool:
        return bool(self.outputs.isfinite().all())

    def to_dict(self) -> dict[str, Any]:
        hits_error = _standard_error(self.hits)
        return {
            "loss": self.loss,
            "loss_se": _standard_error(self.losses),
            "accuracy": self.accuracy,
            "accuracy_se": None if hits_error is None else 100 * hits_error,
            "finite": self.finite,
        }


class Scorer:
    """Accumulates outputs and labels; one batch without a score leaves the pass without one.

    A mean over the batches that happen to have usable labels would be of another set.
    """

    def __init__(self, loss: Loss | None = None) -> None:
        self._loss = loss
        self._rows: list[tuple[Tensor | None, Tensor | None, Tensor]] = []
        self._unused: str | None = None

    def add(self, output: Tensor, labels: Tensor | None) -> None:
        losses = hits = None
        if labels is not None:
            problem = _not_classes(output, labels)
            if problem is None:
                losses, hits = _classification_scores(output, labels)
            if self._loss is not None:
                if labels.is_floating_point() and not labels.isfinite().all():
                    raise AuditError("the labels hold NaN or inf: leave such samples out")
                losses = torch.as_tensor(self._loss(output, labels), dtype=torch.float64).flatten()
            else:
                self._unused = self._unused or problem
        flat = output.detach().float().flatten(1) if output.ndim > 1 else output.detach()[:, None]
        stride = max(1, math.ceil(flat.shape[1] / OUTPUT_VALUES))
        self._rows.append((losses, hits, flat[:, ::stride].float()))

    def take(self) -> Scores:
        losses, hits, outputs = zip(*self._rows, strict=True)
        joined = torch.cat([output.cpu() for output in outputs])
        sizes = list(map(len, outputs))
        return Scores(_join(losses), _join(hits), joined, self._unused, sizes)


def _not_classes(output: Tensor, labels: Tensor) -> str | None:
    """Why labels [N, …] are not classes of outputs [N, classes, …]; None if they are."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return f"they are of {str(labels.dtype).removeprefix('torch.')}, not whole numbers"
    if output.ndim < 2 or labels.shape != output.shape[:1] + output.shape[2:]:
        return f"their shape is {list(labels.shape)} and the output's {list(output.shape)}"
    classes = output.shape[1]
    wrong = labels[_is_counted(labels, classes) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        return f"a label is {int(wrong[0])}, and the model has {classes} classes"
    return None


def _is_counted(labels: Tensor, classes: int) -> Tensor:
    """Which labels count: -100 is ignored everywhere, and 255 in dense labels."""
    ignored = labels == -100
    if labels.ndim > 1 and classes <= 255:
        ignored |= labels == 255
    return ~ignored


def _classification_scores(output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) and hits per sample, float64 [N], averaged over its own places."""
    counted = _is_counted(labels, output.shape[1])
    target = torch.where(counted, labels, torch.full_like(labels, -100)).long()
    losses = F.cross_entropy(output.float(), target, reduction="none").double()
    hits = ((output.argmax(1) == labels) & counted).double()
    places = counted.flatten(1).sum(1) if labels.ndim > 1 else counted.long()
    return (
        losses.reshape(len(labels), -1).sum(1) / places.clamp(min=1),
        hits.reshape(len(labels), -1).sum(1) / places.clamp(min=1),
    )


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part.cpu() for part in parts if part is not None]
    return torch.cat(present) if present and len(present) == len(parts) else None


@dataclass(frozen=True)
class Gain:
    """Scores of two passes over the same samples, before and after a repair.

    Attributes:
        repair: what was done, in words.
        loss_error: standard error of the mean change of the samples' losses.
        accuracy_error: standard error of the change of the accuracy, in points.
        output_change: RMS change of the outputs over the RMS of the old ones about their mean.
    """

    repair: str
    loss_before: float | None
    loss_after: float | None
    loss_error: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    accuracy_error: float | None
    output_change: float
    finite_before: bool
    finite_after: bool

    @classmethod
    def between(cls, before: Scores, after: Scores, repair: str) -> Gain:
        """Compare the scores of two passes."""
        loss_error = _paired_error(before.losses, after.losses)
        hits_error = _paired_error(before.hits, after.hits)
        accuracy_error = None if hits_error is None else 100 * hits_error
        return cls(
            repair, before.loss, after.loss, loss_error, before.accuracy, after.accuracy,
            accuracy_error, output_change(before.outputs, after.outputs), before.finite,
            after.finite,
        )  # fmt: skip

    @property
    def fall(self) -> float | None:
        """By how much the loss falls; None without labels."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_before - self.loss_after

    @property
    def least_fall(self) -> float:
        """The fall of the loss from which it counts; the unit of a custom loss is unknown."""
        return LEAST_FALL if self.accuracy_before is not None else 0.0

    @property
    def is_measurable(self) -> bool:
        """Whether the loss falls by more than two standard errors, however little that is."""
        return (self.fall or 0.0) > 2 * (self.loss_error or math.inf)

    @property
    def harms(self) -> bool:
        """Whether the loss rises by more than two standard errors, and by what would count."""
        rise = -(self.fall or 0.0)
        return rise >= self.least_fall and rise > 2 * (self.loss_error or math.inf)

    @property
    def severity(self) -> str:
        """How much better the repaired model is; without labels, how much its output moved.

        A loss that falls by less than two standard errors, or rises, and an accuracy that does not
        rise by as much, are `info`: a deviation that does no measurable harm.
        """
        if not self.finite_before and self.finite_after:
            return "high"
        fall = self.fall
        if fall is None:
            return severity_of_change(self.output_change)
        points = (self.accuracy_after or 0.0) - (self.accuracy_before or 0.0)
        points = points if points > 2 * (self.accuracy_error or 0.0) else 0.0
        # Half of next to nothing is next to nothing: a cross-entropy counts as 0.1 nats at least.
        least = 0.1 if self.accuracy_before is not None else 1e-9
        if not fall > 2 * (self.loss_error or 0.0) or fall < self.least_fall:  # NaN is no fall
            fall = 0.0
        by_loss = severity_of_change(fall / max(abs(self.loss_before or 0.0), least))
        return max(by_loss, _severity(points, (0.5, 2.0, 10.0)), key=SEVERITIES.index)

    @property
    def size(self) -> float:
        """By how much, to order findings of the same severity."""
        if not self.finite_before:
            return math.inf
        return self.output_change if self.fall is None else self.fall

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def in_words(self) -> str:
        """One sentence without its full stop; ± is the standard error of the change."""
        loss = _move("loss", self.loss_before, self.loss_after, self.loss_error)
        hits = (self.accuracy_before, self.accuracy_after, self.accuracy_error)
        moves = [loss, _move("accuracy", *hits, " %")]
        moved = f"the output changes by {format_change(self.output_change)}"
        return f"{self.repair}: {', '.join(filter(None, moves)) or moved}"


def _move(
    what: str,
    before: float | None,
    after: float | None,
    error: float | None,
    unit: str = "",
) -> str:
    """`the loss falls from 2.100 to 0.300 (± 0.020)`; empty where it is not known."""
    if before is None or after is None:
        return ""
    old, new, spread = format_pair(before, after, error)
    if old == new:
        return f"the {what} stays at {new}{unit}"
    verb = "falls" if after < before else "rises" if after > before else "changes"
    return f"the {what} {verb} from {old} to {new}{unit}{spread}"


def format_pair(before: float, after: float, error: float | None) -> tuple[str, str, str]:
    """Two values and ` (± error)`, with the decimals that their difference's error supports."""
    digits = supported_decimals(max(abs(before), abs(after)), error)
    shown = "" if error is None or not math.isfinite(error) else f"{error:.{digits}f}"
    spread = f" (± {shown})" if shown.strip("0.") else ""
    return f"{before:.{digits}f}", f"{after:.{digits}f}", spread


def format_change(change: float) -> str:
    """A relative change of the output for a sentence: `12.3 %`, `545 times its spread`."""
    if not math.isfinite(change):
        return "more than can be measured"
    digits = 1 if change < 1 else 0
    return f"{100 * change:.{digits}f} %" if change < 10 else f"{change:,.0f} times its spread"


def severity_of_change(change: float) -> str:
    """Severity of a relative change of the output or the loss."""
    return _severity(change, (0.01, 0.1, 0.5))


def least_severity(change: float) -> str:
    """Of an output that is not what eval mode promises: at most medium, whatever the scores say.

    Random answers, or answers that depend on other samples, may cost nothing on average.
    """
    return min("medium", severity_of_change(change), key=SEVERITIES.index)


def _severity(value: float, limits: tuple[float, float, float]) -> str:
    return SEVERITIES[sum(value >= limit for limit in limits)]


def _paired_error(before: Tensor | None, after: Tensor | None) -> float | None:
    """Standard error of the mean change of paired values."""
    if before is None or after is None or len(before) != len(after):
        return None
    return _standard_error(before - after)


def _standard_error(values: Tensor | None) -> float | None:
    """Of the mean; None for fewer than two values."""
    if values is None or len(values) < 2:
        return None
    return float(values.std(correction=1)) / math.sqrt(len(values))


def p_of_fall(after: Scores, before: Scores) -> float:
    """The one-sided p of a paired t-test of whether the loss falls; 1 where it is not known.

    Its units are batches: the samples of one share its statistics in training mode, and are no
    independent samples of how the modes differ. Of fewer than FEW_BATCHES, samples.
    """
    from scipy.special import stdtr  # only audits with a gap need it

    if before.losses is None or after.losses is None or len(before.losses) != len(after.losses):
        return 1.0
    falls, sizes = before.losses - after.losses, list(before.sizes)
    if len(sizes) >= FEW_BATCHES and sum(sizes) == len(falls):
        parts = falls.split(sizes)  # type: ignore[no-untyped-call]
        falls = torch.stack([part.mean() for part in parts])
    value, error = float(falls.mean()), _standard_error(falls)
    if error is None or not value > 0:
        return 1.0
    return float(stdtr(len(falls) - 1, -value / error)) if error else 0.0


def output_change(before: Tensor, after: Tensor) -> float:
    """RMS difference over the RMS of `before` about its mean over samples; infinite from NaN."""
    if before.shape != after.shape or not (before.isfinite().all() and after.isfinite().all()):
        return math.inf
    scale = float((before - before.mean(0)).square().mean().sqrt())
    moved = float((after - before).square().mean().sqrt())
    return moved / scale if scale > 0 else (math.inf if moved > 0 else 0.0)
