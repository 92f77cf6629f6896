"""What a `VarianceProbe` saw, as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vshift.config.identity import hash_of
from vshift.errors import RunError
from vshift.runs import PROBE, RunFolder, now, versions

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]


def save_run(
    path: Path,
    *,
    rows: list[Row],
    metrics: list[Row],
    vectors: dict[str, np.ndarray],
    parameters: int,
    device: str,
    config: Row,
    summary: Row,
) -> Path:
    """Write every file of the run; an earlier one of the same name and seed is replaced.

    Raises:
        RunError: a path that is no `<name>/seed-<n>`, or that cannot be written.
    """
    import yaml

    seed = path.name.removeprefix("seed-")
    if not (path.name.startswith("seed-") and seed.isdecimal()):
        raise RunError(f"{path}: a run folder is called <name>/seed-<n>, for instance mine/seed-0")
    folder = RunFolder.create(path)
    folder.clear()
    name = path.absolute().parent.name
    whole = {"epochs": len(metrics), **config, "name": name, "seeds": [int(seed)]}
    folder.write_config(yaml.safe_dump(whole))
    run = {
        "status": "running",
        "name": name,
        "seed": int(seed),
        "config_hash": hash_of(whole),
        "started": now(),
        "seconds": sum(row["seconds"] for row in metrics),
        "device": device,
        "source": PROBE,
        **versions(),
    }
    folder.write_run(run)
    for row in metrics:
        folder.append_metrics(row)
    folder.append_layers(rows)
    folder.write_channels(vectors)
    folder.write_summary(_summary(rows, metrics[-1], parameters) | summary)
    folder.finish("done")
    return path


def _summary(rows: list[Row], last: Row, parameters: int) -> Row:
    final = [row for row in rows if row["epoch"] == last["epoch"]]
    ratios = [(r["shift_ratio"], r["layer"]) for r in final if r["shift_ratio"] is not None]
    highest = max(ratios, default=(None, None))
    found = {key: value for key, value in last.items() if key not in ("seconds", "step")}
    for key, value in last.items():
        if key.endswith("_accuracy"):
            found[key.replace("_accuracy", "_error")] = 100 - value
    return {
        **found,
        "shift_ratio_mean": sum(r for r, _ in ratios) / len(ratios) if ratios else None,
        "shift_ratio_max": highest[0],
        "shift_ratio_max_layer": highest[1],
        "parameters": parameters,
        "bn_layers": len(final),
    }
