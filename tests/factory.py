"""Fabricated run folders: what training would have left behind, in milliseconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Fields = Mapping[str, Any]


def config_of(name: str = "a", noise: Any = None, epochs: int = 3) -> dict[str, Any]:
    """A small config as its YAML says it."""
    network: dict[str, Any] = {"name": "mlp", "widths": [8, 8], "noise": noise}
    return {"name": name, "data": {"name": "shapes"}, "network": network, "epochs": epochs}


def dropout(rate: float) -> dict[str, Any]:
    return {"kind": "dropout", "rate": rate, "position": "before_last_bn"}


def summary_of(accuracy: float = 90.0, **fields: Any) -> dict[str, Any]:
    """A final summary with plausible numbers around a test accuracy in percent."""
    return {
        "test_accuracy": accuracy,
        "test_error": 100 - accuracy,
        "test_loss": 0.5,
        "train_accuracy_eval_mode": 99.0,
        "train_accuracy_train_mode": 98.0,
        "test_error_recalibrated": 100 - accuracy - 0.5,
        "shift_ratio_mean": 1.05,
        "shift_ratio_max": 1.25,
        "shift_ratio_max_layer": "block2.bn1",
        "parameters": 1234,
        **fields,
    }


def hash_of(config: Fields) -> str:
    counted = {key: value for key, value in config.items() if key not in ("name", "seeds")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


def make_run(
    runs_dir: Path,
    name: str = "a",
    seed: int = 0,
    accuracy: float = 90.0,
    *,
    status: str = "done",
    config: Fields | None = None,
    summary: Fields | None = None,
    run: Fields | None = None,
    metrics: Iterable[Fields] = (),
    layers: Iterable[Fields] = (),
    folder: str | None = None,
) -> Path:
    """Write <runs_dir>/<folder or name>/seed-<seed> and return it.

    `run` adds to run.json's fields; a run that is not done gets a summary only if one is given.
    """
    path = runs_dir / (folder or name) / f"seed-{seed}"
    path.mkdir(parents=True)
    config = config_of(name) if config is None else config
    (path / "config.yaml").write_text(yaml.safe_dump({**config, "name": name, "seeds": [seed]}))
    fields = {
        "status": status,
        "name": name,
        "seed": seed,
        "config_hash": hash_of(config),
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "seconds": 60.0,
        "images_per_second": 1000.0,
        "device": "cpu",
        "data": "shapes",
        **(run or {}),
    }
    (path / "run.json").write_text(json.dumps(fields))
    if summary is not None or status == "done":
        (path / "summary.json").write_text(json.dumps(summary or summary_of(accuracy)))
    write_rows(path / "metrics.jsonl", metrics)
    write_rows(path / "layers.jsonl", layers)
    return path


def write_rows(path: Path, rows: Iterable[Fields]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
