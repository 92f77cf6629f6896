"""A fabricated study with everything that a report can show, and names that try to break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.factory import config_of, dropout, make_run, summary_of

EVIL = "<script>alert(1)</script>\"'&</script><!--"
LAYERS = ("stage1.block1.branch.bn1", "stage1.block1.branch.bn2", "stage2.block1.branch.bn1")
EVIL_LAYER = "head.<img src=x onerror=alert(2)>"
EPOCHS = 3
# name → noise, test error of seed 0, shift ratio of each layer at the last epoch
ARMS: dict[str, tuple[Any, float, tuple[float, ...]]] = {
    "arm-none": (None, 10.0, (1.01, 1.02, 1.01, 1.02)),
    "arm-bn-0.3": (dropout(0.3), 20.0, (1.01, 1.5, 1.1, 1.05)),
    "arm-bn-0.5": (dropout(0.5), 40.0, (1.01, 2.5, 1.2, 1.1)),
    "arm-conv-0.5": (
        {**dropout(0.5), "position": "before_last_conv"}, 14.0, (1.01, 1.02, 1.2, 1.1)
    ),
}  # fmt: skip


def make_study(folder: Path, seeds: int = 3) -> Path:
    """Run folders of four arms, of one evil one, and of runs that do not count."""
    for name, (noise, error, ratios) in ARMS.items():
        for seed in range(seeds):
            _make_arm(folder, name, seed, noise, error + (0.0, 0.6, -0.5)[seed % 3], ratios)
    _make_arm(folder, "evil", 0, dropout(0.1), 12.0, (1.01, 1.2, 1.05, 1.03), called=EVIL)
    make_run(folder, "arm-running", 0, status="running", config=config_of(epochs=EPOCHS))
    make_run(folder, "arm-diverged", 1, status="diverged", config=config_of(epochs=EPOCHS))
    (folder / "arm-damaged" / "seed-0").mkdir(parents=True)
    (folder / "arm-damaged" / "seed-0" / "run.json").write_text("{")
    return folder


def _make_arm(
    runs: Path,
    name: str,
    seed: int,
    noise: Any,
    error: float,
    ratios: tuple[float, ...],
    called: str | None = None,
) -> None:
    config = config_of(name, noise, EPOCHS)
    config["measure"] = {"every": 1, "explain_batches": 4, "eval_epochs": []}
    summary = summary_of(
        100 - error,
        shift_ratio_mean=sum(ratios) / len(ratios),
        shift_ratio_max=max(ratios),
        shift_ratio_max_layer=LAYERS[1],
        recalibration="precise",
        test_error_recalibrated=error / 2,
        bn_layers=len(ratios),
        epoch=EPOCHS,
        monte_carlo_ece=error / 5,
        monte_carlo_nll=0.9,
    )
    path = make_run(
        runs, name, seed, config=config, summary=summary, metrics=_metrics(100 - error),
        layers=_layers(ratios, noise is not None),
        run={"name": called or name},
    )  # fmt: skip
    methods = [
        {"method": "none", "test_accuracy": 100 - error, "test_loss": 1.0, "test_ece": error / 4,
         "test_nll": 1.0, "test_brier": error / 50},
        {"method": "precise", "test_accuracy": 100 - error / 2, "test_loss": 0.8,
         "test_ece": error / 8, "test_nll": 0.8, "test_brier": error / 100},
        {"method": "swap", "test_accuracy": 100 - error - 1, "test_loss": 1.2},
    ]  # fmt: skip
    (path / "recalibration.json").write_text(json.dumps({"methods": methods}))
    modes = [
        {"data": data, "noise": on, "statistics": kind, "loss": 1.0, "accuracy": 100 - error + i}
        for data in ("train", "test")
        for i, on in enumerate(("on", "off"))
        for kind in ("batch", "running", "precise")
    ]
    (path / "modes.json").write_text(json.dumps({"modes": modes}))
    _write_channels(path, ratios, seed)


def _metrics(accuracy: float) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "test_accuracy": accuracy * epoch / EPOCHS,
            "train_accuracy": accuracy * epoch / EPOCHS + 1,
            "test_loss": 2 / epoch,
            "train_loss": 1.5 / epoch,
            "images_per_second": 100.0,
            "seconds": 10.0,
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def _layers(ratios: tuple[float, ...], noise: bool) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, EPOCHS + 1):
        for index, (layer, ratio) in enumerate(zip((*LAYERS, EVIL_LAYER), ratios, strict=True)):
            last, reached = epoch == EPOCHS, noise and index == 1
            rows.append(
                {
                    "epoch": epoch,
                    "index": index,
                    "layer": layer,
                    "channels": 8,
                    "noise_before": reached,
                    "train_variance": ratio,
                    "running_variance": ratio * (1 + 0.1 / epoch),
                    "eval_variance": 1.0 if last else None,
                    "shift_ratio": ratio if last else None,
                    "shift_ratio_se": 0.01 if last else None,
                    "lag_ratio": 1.02 if last else None,
                    "lag_free_ratio": ratio / 1.005 if last else None,
                    "cause": "shift" if last and ratio > 1.05 else None,
                    "mean_shift": 0.1 * (ratio - 1) if last else None,
                    "mean_tid": 0.05 if last else None,
                    "variance_tid": 0.03 if last else None,
                    "total_ratio": ratio if last else None,
                    "local_ratio": (ratio if reached else 1.0) if last else None,
                    "local_ratio_se": 0.01 if last else None,
                    "inherited_ratio": (1.0 if reached else ratio) if last else None,
                    "predicted_ratio": (ratio + 0.005 if reached else 1.0) if last else None,
                    "predicted_ratio_se": 0.002 if last else None,
                    "predicted_exact": True if last else None,
                }
            )
    logits = {"epoch": EPOCHS, "index": len(ratios), "layer": "logits", "kind": "logits"}
    return [*rows, {**logits, "shift_ratio": 1.3, "mean_shift": 0.2, "cause": "shift"}]


def _write_channels(path: Path, ratios: tuple[float, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = {}
    for layer, ratio in zip((*LAYERS, EVIL_LAYER), ratios, strict=True):
        vectors[f"{layer}.eval_variance"] = np.ones(8, np.float32)
        spread = random.uniform(0.9, 1.1, 8)
        vectors[f"{layer}.running_variance"] = (ratio * spread).astype(np.float32)
    save_file(vectors, path / "channels.safetensors")
