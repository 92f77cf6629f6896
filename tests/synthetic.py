"""Many run folders as training leaves them, for tests of speed: real configs, made-up numbers.

python -m tests.synthetic FOLDER --configs 100 --seeds 3 --epochs 50 --layers 100
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vshift.config.identity import config_hash
from vshift.config.load import dump
from vshift.config.schema import Config

POSITIONS = ("before_last_bn", "before_last_conv")


def config(index: int, epochs: int) -> Config:
    """The index-th config: without noise, then rates by position; every one is different."""
    noise = None
    if index:
        rate = round(0.9 * index / (index + 40), 4)
        noise = {"kind": "dropout", "rate": rate, "position": POSITIONS[index % 2]}
    return Config.model_validate(
        {
            "name": f"synthetic-{index}",
            "data": {"name": "shapes", "train": 4000, "test": 2000},
            "network": {"name": "preresnet", "depth": 20, "noise": noise},
            "epochs": epochs,
            "schedule": {"name": "onecycle", "peak": 0.2},
        }
    )


def make_runs(
    folder: Path,
    configs: int,
    seeds: int,
    *,
    epochs: int = 50,
    layers: int = 100,
    share_layers: bool = True,
) -> int:
    """Write configs × seeds finished runs below a folder and return how many.

    Args:
        share_layers: every layers.jsonl is a link to one file, which saves gigabytes; else each run
            has numbers of its own.
    """
    shared = folder / ".layers.jsonl"  # a hidden file is no run
    for index in range(configs):
        chosen = config(index, epochs)
        text, own_hash = dump(chosen), config_hash(chosen)
        for seed in range(seeds):
            path = folder / chosen.name / f"seed-{seed}"
            path.mkdir(parents=True)
            numbers = random.Random(index * 1000 + seed)
            (path / "config.yaml").write_text(text.replace("seeds: [0]", f"seeds: [{seed}]"))
            _write_json(path / "run.json", _run(chosen, own_hash, seed))
            _write_json(path / "summary.json", _summary(numbers, epochs, layers))
            _write_rows(path / "metrics.jsonl", _metrics(numbers, epochs))
            own = path / "layers.jsonl"
            if share_layers and shared.exists():
                os.link(shared, own)
                continue
            _write_rows(own, _layers(numbers, epochs, layers))
            if share_layers:
                os.link(own, shared)
    return configs * seeds


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(chosen: Config, own_hash: str, seed: int) -> dict[str, Any]:
    return {
        "status": "done",
        "name": chosen.name,
        "seed": seed,
        "config_hash": own_hash,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "seconds": 60.0,
        "images_per_second": 1000.0 + seed,
        "device": "cpu: x86_64, 1 thread",
        "data": chosen.data.name,
        "torch": "2.11.0",
        "vshift": "0.1.0",
        "git": None,
    }


def _summary(numbers: random.Random, epochs: int, layers: int) -> dict[str, Any]:
    error = numbers.gauss(30, 0.5)
    return {
        "epoch": epochs,
        "test_loss": error / 30,
        "test_accuracy": 100 - error,
        "test_error": error,
        "train_loss": 0.5,
        "train_accuracy": 80.0,
        "shift_ratio_mean": numbers.uniform(1, 1.5),
        "shift_ratio_max": numbers.uniform(1.5, 3),
        "shift_ratio_max_layer": f"stage1.block{numbers.randrange(layers)}.bn1",
        "parameters": 272_282,
        "bn_layers": layers,
        "train_accuracy_eval_mode": 79.0,
        "train_accuracy_train_mode": 81.0,
        "test_accuracy_precise": 101 - error,
        "recalibration": "precise",
        "test_error_recalibrated": error - 1,
    }


def _metrics(numbers: random.Random, epochs: int) -> Iterator[dict[str, Any]]:
    for epoch in range(1, epochs + 1):
        accuracy = 90 * epoch / (epoch + 5) + numbers.gauss(0, 0.5)
        yield {
            "epoch": epoch,
            "step": 32 * epoch,
            "learning_rate": 0.1,
            "train_loss": 2 / epoch,
            "train_accuracy": accuracy,
            "test_loss": 2.2 / epoch,
            "test_accuracy": accuracy - 2,
            "seconds": 1.0,
            "images_per_second": 1000.0,
        }


def _layers(numbers: random.Random, epochs: int, layers: int) -> Iterator[dict[str, Any]]:
    """Ratios and their errors as measured in the last epoch only, like training's default."""
    ratios = ("total", "local", "inherited", "predicted")
    for epoch in range(1, epochs + 1):
        for index in range(layers):
            variance = numbers.lognormvariate(0, 1)
            ratio = numbers.uniform(1, 2) if epoch == epochs else None
            yield {
                "epoch": epoch,
                "index": index,
                "layer": f"stage1.block{index}.bn1",
                "channels": 64,
                "noise_before": index % 2 == 1,
                "train_variance": variance,
                "running_variance": variance * 1.01,
                "eval_variance": ratio and variance / ratio,
                "shift_ratio": ratio,
                "shift_ratio_se": ratio and 0.01,
                **{f"{name}_ratio": ratio for name in ratios},
                **{f"{name}_ratio_se": ratio and 0.01 for name in ratios},
                "predicted_exact": True,
                "closed_form_ratio": ratio,
                "cos2": 0.03,
                "dcos2": 3.0,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, default in (("configs", 100), ("seeds", 3), ("epochs", 50), ("layers", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--own-layers", action="store_true", help="no shared layers.jsonl")
    chosen = parser.parse_args()
    made = make_runs(
        chosen.folder,
        chosen.configs,
        chosen.seeds,
        epochs=chosen.epochs,
        layers=chosen.layers,
        share_layers=not chosen.own_layers,
    )
    print(f"{made} runs in {chosen.folder}")


if __name__ == "__main__":
    main()
