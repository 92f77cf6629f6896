"""What a run's rows come to: errors of accuracies, means over layers, the cause of a shift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vshift.runs.schema import LayerRow
from vshift.text import format_number, format_significant


def error_of(accuracy: float | None) -> float | None:
    """The error in percent of an accuracy in percent; None where nothing is classified."""
    return None if accuracy is None else 100 - accuracy


def with_errors(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, and after them `<part>_error` for every `<part>_accuracy` that was tested."""
    errors = {
        key.replace("_accuracy", "_error"): error_of(value)
        for key, value in metrics.items()
        if key.endswith("_accuracy")
    }
    return {**metrics, **errors}


def score_in_words(row: Mapping[str, Any]) -> str:
    """`error 10.69 %`, or `RMSE 3.1` or `loss 0.2` if the network is no classifier.

    Empty before the first epoch.
    """
    accuracy, rmse, loss = (row.get(f"test_{key}") for key in ("accuracy", "rmse", "loss"))
    if isinstance(accuracy, int | float):
        return f"error {format_number(error_of(accuracy), 2)} %"
    for word, value in (("RMSE", rmse), ("loss", loss)):
        if isinstance(value, int | float):
            return f"{word} {format_significant(value, 3)}"
    return ""


def summarize_layers(rows: Iterable[LayerRow]) -> dict[str, Any]:
    """The keys of summary.json that the last epoch's layers give.

    Of BN layers; the shift ratio and mean shift of other sites are means by kind.
    """
    every = list(rows)
    rows = [row for row in every if row.kind == "bn"]
    summary = summarize_ratios({row.layer: row.shift_ratio for row in rows})
    summary |= {
        "shift_ratio_cause": main_cause(rows),
        "lag_free_ratio_mean": _mean(row.lag_free_ratio for row in rows),
        "mean_shift": _mean(row.mean_shift for row in rows),
        "mean_tid": _mean(row.mean_tid for row in rows),
        "variance_tid": _mean(row.variance_tid for row in rows),
    }
    for kind in dict.fromkeys(row.kind for row in every if row.kind != "bn"):
        of_kind = [row for row in every if row.kind == kind]
        summary[f"shift_ratio_mean_{kind}"] = _mean(row.shift_ratio for row in of_kind)
        summary[f"mean_shift_{kind}"] = _mean(row.mean_shift for row in of_kind)
    return {**summary, "bn_layers": len(rows)}


def summarize_ratios(ratios: Mapping[str, float | None]) -> dict[str, Any]:
    """Mean and maximum of shift ratios by layer, and its layer; None where none is finite."""
    finite = [(r, layer) for layer, r in ratios.items() if r is not None and math.isfinite(r)]
    highest = max(finite, default=(None, None))
    return {
        "shift_ratio_mean": sum(ratio for ratio, _ in finite) / len(finite) if finite else None,
        "shift_ratio_max": highest[0],
        "shift_ratio_max_layer": highest[1],
    }


def main_cause(rows: Iterable[LayerRow]) -> str | None:
    """What causes more than half of the logarithms of the shift ratios, `lag` or `shift`; `both`
    if neither does, None if no layer has a cause."""
    shares: dict[str | None, float] = {}
    for row in rows:
        if row.shift_ratio is not None and math.isfinite(row.shift_ratio):
            shares[row.cause] = shares.get(row.cause, 0.0) + math.log(row.shift_ratio)
    if not shares.keys() - {None}:
        return None
    largest = max(shares, key=lambda cause: shares[cause])
    is_main = largest in ("lag", "shift") and shares[largest] > sum(shares.values()) / 2
    return largest if is_main else "both"


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
