"""The scores of a run's network: its loss, accuracy or RMSE, and calibration, over batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from vshift.runs.files import Row
from vshift.shift.calibration import Calibration, CalibrationSums
from vshift.shift.modes import restoring_state
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.objective import Metrics

CALIBRATION = tuple(field.name for field in fields(Calibration))
NO_SCORES = dict.fromkeys(f"test_{name}" for name in ("loss", "accuracy", *CALIBRATION))


@dataclass(frozen=True)
class Scores:
    """Metrics, and how well calibrated the answers are (None where nothing is classified)."""

    metrics: Metrics
    calibration: Calibration | None

    def columns(self, pattern: str = "{}") -> Row:
        """The scores by column: `test_loss`, …, `test_ece` for the pattern `test_{}`."""
        values = dict.fromkeys(CALIBRATION) | (asdict(self.calibration) if self.calibration else {})
        calibration = {pattern.format(name): value for name, value in values.items()}
        return self.metrics.columns(pattern) | calibration


class Scorer:
    """Mean loss and scores over batches, in the mode that the model is in when they are added."""

    def __init__(self, context: TrainingContext) -> None:
        self.context, self.metrics = context, context.make_metrics()
        self.calibration = CalibrationSums(context.device)

    @torch.no_grad()
    def add(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        context, classes = self.context, len(self.context.images.classes)
        for images, labels in batches:
            with context.autocast():
                output = context.model(images).float()
            self.metrics.add(*context.objective(output, images, labels), len(labels))
            if labels.dtype == torch.int64 and output.shape == (len(labels), classes):
                self.calibration.add(output.double().log_softmax(1), labels)

    def compute(self) -> Scores:
        found = self.metrics.compute_and_reset()
        return Scores(found, None if found.accuracy is None else self.calibration.compute())


def evaluate(context: TrainingContext, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Mean loss and scores over batches, in the model's present mode."""
    scorer = Scorer(context)
    scorer.add(batches)
    return scorer.compute()


def test_scores(context: TrainingContext) -> Row:
    """The test part's scores, and the validation part's where there is one, in eval mode."""
    parts = {"test": context.images.test, "validation": context.images.validation}
    row: Row = {}
    for name, part in parts.items():
        if part is not None:
            with restoring_state(context.model):
                context.model.eval()
                scores = evaluate(context, context.to_test(part))
            row |= scores.columns(f"{name}_{{}}")
    return row


def train_mode_scores(context: TrainingContext) -> Row:
    """Scores on all augmented training images in train mode; buffers stay as they are."""
    epoch = context.config.epochs
    with restoring_state(context.model):
        context.model.train()
        torch.manual_seed(derive_seed(context.seed, epoch, "final noise"))
        scores = evaluate(context, context.augmented(epoch, None)())
    return scores.columns("train_{}_train_mode")


@torch.no_grad()
def code_scores(context: TrainingContext) -> Row:
    """How active an autoencoder's code, its last hidden layer, is on the test images."""
    coder = nn.Sequential(*list(context.model.children())[:-1])
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    with restoring_state(context.model), context.autocast():
        context.model.eval()
        for images, _ in context.to_test(context.images.test):
            code = coder(images).double().cpu()
            sums += torch.stack([code.sum(), (code > 0.5).double().sum()])
            count += code.numel()
    mean, active = (sums / count).tolist()
    return {"code_mean_activity": mean, "code_share_above_half": active}
