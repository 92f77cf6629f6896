"""Lightning: `Trainer(callbacks=[VarianceCallback("runs/mine/seed-0")])`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vshift.auditing.probe import VarianceProbe
from vshift.runs.summary import summarize_ratios

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    from pytorch_lightning import Callback, LightningModule, Trainer


class VarianceCallback(Callback):
    """Measures every BN layer's train, running and eval variance after each epoch of a training.

    Logs `shift_ratio_mean` and `shift_ratio_max` to the trainer's loggers.

    Args:
        folder: `<runs-dir>/<name>/seed-<n>`, where the run is saved at the end of the training for
            `vshift compare` and `vshift report`; None saves nothing.
        loader: of training inputs for the eval variance; default: the trainer's own.
        batches: number of its batches used; None is all.
        metrics: what has been logged (`trainer.callback_metrics`, as numbers) → the epoch's columns
            of `metrics.jsonl`, for instance
            `lambda logged: {"test_accuracy": 100 * logged["val_acc"]}`.

    Attributes:
        probe: the `VarianceProbe`, once training has begun; `probe.frame()` has all rows.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        loader: Iterable[Any] | None = None,
        batches: int | None = 30,
        metrics: Callable[[Mapping[str, float]], dict[str, Any]] | None = None,
    ) -> None:
        self.folder, self.loader, self.batches, self.metrics = folder, loader, batches, metrics
        self.probe: VarianceProbe | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch, after the trainer's own check of the validation."""
        self.probe = VarianceProbe(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure; the epoch's validation is over."""
        assert self.probe is not None
        logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        rows = self.probe.end_epoch(
            self.loader or trainer.train_dataloader,
            batches=self.batches,
            **(self.metrics(logged) if self.metrics else {}),
        )
        found = summarize_ratios(dict(zip(rows.layer, rows.shift_ratio, strict=True)))
        for key in ("shift_ratio_mean", "shift_ratio_max"):
            if found[key] is not None:
                pl_module.log(key, found[key])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching, and save the run."""
        assert self.probe is not None
        self.probe.remove()
        if self.folder is not None and trainer.is_global_zero:
            self.probe.save(self.folder)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching."""
        if self.probe is not None:
            self.probe.remove()
