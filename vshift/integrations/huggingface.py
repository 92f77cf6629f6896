"""Hugging Face's Trainer: `Trainer(…, callbacks=[VarianceCallback("runs/mine/seed-0")])`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vshift.auditing.probe import VarianceProbe


class VarianceCallback(TrainerCallback):
    """Measures every BN layer's train, running and eval variance after each epoch of a training.

    Args:
        folder: `<runs-dir>/<name>/seed-<n>`, where the run is saved at the end of the training for
            `vshift compare` and `vshift report`; None saves nothing.
        batches: number of training batches used for the eval variance; None is all.
        metrics: what an evaluation gave (`eval_loss`, …) → columns of `metrics.jsonl` for the last
            epoch, for instance `lambda found: {"test_loss": found["eval_loss"]}`.

    Attributes:
        probe: the `VarianceProbe`, once training has begun; `probe.frame()` has all rows.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        batches: int | None = 30,
        metrics: Callable[[Mapping[str, float]], dict[str, Any]] | None = None,
    ) -> None:
        self.folder, self.batches, self.metrics = folder, batches, metrics
        self.probe: VarianceProbe | None = None

    def on_train_begin(self, *_: Any, **given: Any) -> None:
        """Begin to watch."""
        self.probe = VarianceProbe(given["model"])

    def on_epoch_end(self, *_: Any, **given: Any) -> None:
        """Measure; the epoch's evaluation comes after this."""
        assert self.probe is not None
        self.probe.end_epoch(given["train_dataloader"], batches=self.batches)

    def on_evaluate(self, *_: Any, **given: Any) -> None:
        """Add the scores to the epoch that is evaluated."""
        if self.probe is not None and self.probe.metrics and self.metrics is not None:
            self.probe.metrics[-1].update(self.metrics(given["metrics"]))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop watching, and save the run."""
        assert self.probe is not None
        self.probe.remove()
        if self.folder is not None:
            self.probe.save(self.folder)
