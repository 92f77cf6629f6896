"""From per-channel moments to the rows, vectors and summary that a run folder holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from vshift.shift.probe import Moments, shift_ratio

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]
Layers = dict[str, Moments]


def layer_rows(
    epoch: int, seen: Layers, running: Layers, met: Layers, noisy: set[str]
) -> list[Row]:
    """One row of `layers.jsonl` for each BN layer: channel means of its variances.

    Args:
        seen: moments in training batches; running: what BN keeps; met: in eval mode, {} if not
            measured at this epoch.
        noisy: the layers that noise reaches through no other BN.
    """
    rows = []
    for index, (name, train) in enumerate(seen.items()):
        evaluated = met[name].variance if name in met else None
        kept = running[name].variance
        rows.append(
            {
                "epoch": epoch,
                "index": index,
                "layer": name,
                "channels": len(kept),
                "noise_before": name in noisy,
                "train_variance": float(train.variance.mean()),
                "running_variance": float(kept.mean()),
                "eval_variance": None if evaluated is None else float(evaluated.mean()),
                "shift_ratio": None if evaluated is None else shift_ratio(kept, evaluated),
            }
        )
    return rows


def vectors(seen: Layers, running: Layers, met: Layers) -> dict[str, np.ndarray]:
    """The contents of `channels.safetensors`: float32 vectors `<layer>.<what>_<moment>`."""
    kinds = {"train": seen, "running": running, "eval": met}
    return {
        f"{name}.{kind}_{moment}": getattr(moments, moment).float().numpy()
        for kind, layers in kinds.items()
        for name, moments in layers.items()
        for moment in ("variance", "mean")
    }


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


def summary_of(model: nn.Module, row: Row, rows: list[Row]) -> Row:
    """The final numbers from the last row of metrics and the last rows of layers."""
    highest = max(_ratios(rows), default=(None, None))
    final = {key: row[key] for key in row if key.startswith(("test_", "validation_"))}
    errors = {
        key.replace("_accuracy", "_error"): 100 - value
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
