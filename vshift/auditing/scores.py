"""Loss and accuracy of a pass, or its outputs; and what a repair changes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Mean or per-sample loss from (output, labels).
Loss = Callable[[Tensor, Tensor], Tensor]

SEVERITIES = ("info", "low", "medium", "high")
KEPT_VALUES = 4096  # of one sample's output; dense outputs are thinned out to so many


@dataclass(frozen=True)
class Scores:
    """Of one pass over n samples.

    Attributes:
        losses: float64 [n], or [batches] where the loss gives one number a batch; None unlabelled.
        hits: float64 [n] of 0 and 1; None where nothing is classified.
        outputs: float32 [n, D], thinned out to at most 4,096 values a sample.
    """

    losses: Tensor | None
    hits: Tensor | None
    outputs: Tensor

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
        return {"loss": self.loss, "accuracy": self.accuracy, "finite": self.finite}


class Scorer:
    """Takes in batches of outputs and labels."""

    def __init__(self, loss: Loss | None = None) -> None:
        self._loss = loss
        self._rows: list[tuple[Tensor | None, Tensor | None, Tensor]] = []

    def add(self, output: Tensor, labels: Tensor | None) -> None:
        losses = hits = None
        if labels is not None and self._loss is not None:
            losses = self._loss(output, labels).double().flatten()
        elif labels is not None and _classified(output, labels):
            losses = F.cross_entropy(output.float(), labels.long(), reduction="none").double()
        if labels is not None and _classified(output, labels):
            hits = (output.argmax(1) == labels).double()
        self._rows.append((losses, hits, _thinned(output)))

    def take(self) -> Scores:
        losses, hits, outputs = zip(*self._rows, strict=True)
        return Scores(_joined(losses), _joined(hits), torch.cat([o.cpu() for o in outputs]))


def _classified(output: Tensor, labels: Tensor) -> bool:
    whole = not labels.is_floating_point() and not labels.is_complex()
    if output.ndim != 2 or labels.ndim != 1 or not whole or labels.dtype == torch.bool:
        return False
    return bool(((labels >= 0) & (labels < output.shape[1])).all())


def _thinned(output: Tensor) -> Tensor:
    flat = output.detach().float().flatten(1) if output.ndim > 1 else output.detach()[:, None]
    step = -(-flat.shape[1] // KEPT_VALUES)
    return flat[:, :: max(1, step)].float()


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    found = [part.cpu() for part in parts if part is not None]
    return torch.cat(found) if found else None


@dataclass(frozen=True)
class Gain:
    """What a repair changed: before and after.

    Attributes:
        loss_error: standard error of the mean change of the samples' losses.
        accuracy_error: of the change of accuracy, points.
        output_change: RMS change of the outputs over the RMS of the old ones about their mean.
        repair: in words, what was done.
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

    @property
    def severity(self) -> str:
        """By how much the repaired model is better; without labels, by how much its output moved.

        A loss that falls by less than two standard errors, or rises, and an accuracy that does not
        rise by as much, are `info`: a deviation that does no measurable harm.
        """
        if not self.finite_before and self.finite_after:
            return "high"
        if self.loss_before is None or self.loss_after is None:
            return _word(self.output_change, 0.01, 0.1, 0.5)
        fall = self.loss_before - self.loss_after
        points = (self.accuracy_after or 0.0) - (self.accuracy_before or 0.0)
        fall = fall if fall > 2 * (self.loss_error or 0.0) else 0.0
        points = points if points > 2 * (self.accuracy_error or 0.0) else 0.0
        # Half of next to nothing is next to nothing: a cross-entropy counts from 0.1 nats on.
        least = 1e-9 if self.accuracy_before is None else 0.1
        by_loss = _word(fall / max(abs(self.loss_before), least), 0.01, 0.1, 0.5)
        by_accuracy = _word(points, 0.5, 2.0, 10.0)
        return max(by_loss, by_accuracy, key=SEVERITIES.index)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def in_words(self) -> str:
        """One sentence."""
        if self.loss_before is None or self.loss_after is None:
            return f"{self.repair} changes the output by {100 * self.output_change:.1f} %"
        text = f"{self.repair} takes the loss from {self.loss_before:.3f} to {self.loss_after:.3f}"
        if self.accuracy_before is None or self.accuracy_after is None:
            return text
        return (
            f"{text}, the accuracy from {self.accuracy_before:.1f} to {self.accuracy_after:.1f} %"
        )


def word_of_change(change: float) -> str:
    """The severity of an output that moves by so much, relative."""
    return _word(change, 0.01, 0.1, 0.5)


def _word(value: float, low: float, medium: float, high: float) -> str:
    reached = [w for w, at in zip(SEVERITIES[1:], (low, medium, high), strict=True) if value >= at]
    return reached[-1] if reached else "info"


def gain(before: Scores, after: Scores, repair: str) -> Gain:
    """Compare two passes over the same samples."""
    hits = _error(before.hits, after.hits)
    return Gain(
        repair,
        before.loss,
        after.loss,
        _error(before.losses, after.losses),
        before.accuracy,
        after.accuracy,
        None if hits is None else 100 * hits,
        output_change(before.outputs, after.outputs),
        before.finite,
        after.finite,
    )


def _error(before: Tensor | None, after: Tensor | None) -> float | None:
    """Standard error of the mean change of paired values."""
    if before is None or after is None or len(before) < 2:
        return None
    return float((before - after).std(correction=1)) / math.sqrt(len(before))


def output_change(before: Tensor, after: Tensor) -> float:
    """RMS difference over the RMS of `before` about its mean over samples; infinite from NaN."""
    if before.shape != after.shape or not (before.isfinite().all() and after.isfinite().all()):
        return math.inf
    scale = float((before - before.mean(0)).square().mean().sqrt())
    moved = float((after - before).square().mean().sqrt())
    return moved / scale if scale > 0 else (math.inf if moved > 0 else 0.0)
