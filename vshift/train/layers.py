"""From per-channel moments to the rows, vectors and summary that a run folder holds."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from vshift.shift.decompose import Decomposition
from vshift.shift.stats import Estimate, Moments, PooledMoments, ratio_error, shift_ratio

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]
Layers = dict[str, Moments]


@dataclass(frozen=True)
class EpochLayerStats:
    """What an epoch tells of every BN layer, by name.

    Attributes:
        train: moments in training batches; running: what BN keeps.
        eval_stats: moments of what it meets in eval mode; {} if not measured at this epoch.
        explained: the shift split up; {} likewise.
        average: how many batches BN's average is worth; see `ratio_error`.
    """

    train: Layers
    running: Layers
    eval_stats: dict[str, PooledMoments]
    explained: dict[str, Decomposition]
    average: float

    def rows(self, epoch: int, noisy: Set[str]) -> list[Row]:
        """One row of `layers.jsonl` for each BN layer: channel means of its variances.

        Args:
            noisy: the layers that noise reaches through no other BN.
        """
        return [
            {
                "epoch": epoch,
                "index": index,
                "layer": name,
                "channels": len(train.variance),
                "noise_before": name in noisy,
                "train_variance": float(train.variance.mean()),
                "running_variance": float(self.running[name].variance.mean()),
                **self._shift(name),
                **_explained(self.explained.get(name)),
            }
            for index, (name, train) in enumerate(self.train.items())
        ]

    def _shift(self, name: str) -> Row:
        if name not in self.eval_stats:
            return dict.fromkeys(("eval_variance", "shift_ratio", "shift_ratio_se"))
        stats, running = self.eval_stats[name], self.running[name].variance
        variance = float(stats.average_variance.mean())
        ratio = shift_ratio(running, stats.average_variance)
        error = ratio_error(ratio, variance, stats.standard_error, stats.batches, self.average)
        return {"eval_variance": variance, "shift_ratio": ratio, "shift_ratio_se": error}

    def vectors(self) -> dict[str, np.ndarray]:
        """The contents of `channels.safetensors`: float32 vectors `<layer>.<what>_<moment>`."""
        stats = {n: Moments(p.average_mean, p.average_variance) for n, p in self.eval_stats.items()}
        kinds = {"train": self.train, "running": self.running, "eval": stats}
        return {
            f"{name}.{kind}_{moment}": getattr(moments, moment).float().numpy()
            for kind, layers in kinds.items()
            for name, moments in layers.items()
            for moment in ("variance", "mean")
        }


RATIOS = ("total", "local", "inherited", "predicted")


def _explained(found: Decomposition | None) -> Row:
    """Its columns: ratios training/testing with standard errors, and the layer's cosines."""
    row: Row = {}
    for name in RATIOS:
        estimate: Estimate | None = getattr(found, name, None)
        row[f"{name}_ratio"] = estimate and estimate.value
        row[f"{name}_ratio_se"] = estimate and estimate.error
    row["predicted_exact"] = found and found.exact
    row["closed_form_ratio"] = found and found.closed_form
    row["cos2"] = found and found.cos2
    row["dcos2"] = found and found.dcos2
    return row


def _ratios(rows: list[Row]) -> list[tuple[float, str]]:
    return [
        (row["shift_ratio"], row["layer"])
        for row in rows
        if row["shift_ratio"] is not None and math.isfinite(row["shift_ratio"])
    ]


def mean_ratio(rows: list[Row]) -> float | None:
    """The mean shift ratio over layers, None where none was measured."""
    ratios = _ratios(rows)
    return sum(ratio for ratio, _ in ratios) / len(ratios) if ratios else None


def error_of(accuracy: float | None) -> float | None:
    """Both in percent; None where nothing is classified."""
    return None if accuracy is None else 100 - accuracy


def summary_of(model: nn.Module, row: Row, rows: list[Row]) -> Row:
    """The final numbers from the last row of metrics and the last rows of layers."""
    highest = max(_ratios(rows), default=(None, None))
    final = {key: row[key] for key in row if key.startswith(("test_", "validation_"))}
    errors = {
        key.replace("_accuracy", "_error"): error_of(value)
        for key, value in final.items()
        if key.endswith("_accuracy")
    }
    return {
        "epoch": row["epoch"],
        **final,
        **errors,
        "train_loss": row["train_loss"],
        "train_accuracy": row["train_accuracy"],
        "shift_ratio_mean": mean_ratio(rows),
        "shift_ratio_max": highest[0],
        "shift_ratio_max_layer": highest[1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "bn_layers": len(rows),
    }
