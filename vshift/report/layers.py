"""Frames of BN layers and their channels, from layers.jsonl and channels.safetensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from vshift.errors import RunError
from vshift.report.groups import Group
from vshift.report.reading import layer_rows
from vshift.runs.folder import RunFolder
from vshift.runs.read import RunRecord, number
from vshift.text import escape_control

Row = dict[str, Any]
T = TypeVar("T")

# What a page can hold: beyond so many rows epochs or layers are thinned out evenly.
EPOCH_ROWS = 20_000
CHANNEL_ROWS = 15_000
_BINS = 24
_MOST_EPOCHS = 100_000  # as the config allows

_VARIANCES = ("train_variance", "running_variance", "eval_variance", "shift_ratio")
_RATIOS = ("total_ratio", "local_ratio", "inherited_ratio", "predicted_ratio")


def frame_of(rows: Iterable[Row], columns: Sequence[str] = ()) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows))
    return frame if len(frame) else pd.DataFrame(columns=list(columns))


def attempt(problems: list[str], otherwise: T, reader: Callable[..., T], *arguments: Any) -> T:
    """What the reader returns; if the file is damaged, `otherwise`, and the reason as a problem."""
    try:
        return reader(*arguments)
    except RunError as error:
        problems.append(str(error))
        return otherwise


def _measured(run: RunRecord) -> list[int]:
    """The epochs that layers.jsonl has rows of, by the config."""
    measure = run.config.get("measure")
    measure = measure if isinstance(measure, dict) else {}
    last = number(run.config.get("epochs")) or number(run.summary.get("epoch")) or 0
    every = number(measure.get("every", 1)) or 0
    if every < 1 or not 1 <= last <= _MOST_EPOCHS:
        return []
    return [*range(int(every), int(last), int(every)), int(last)]


def kept(epochs: list[int], most: int) -> list[int]:
    """At most so many epochs, evenly spaced, with the first and the last."""
    if len(epochs) <= most:
        return epochs
    places = np.linspace(0, len(epochs) - 1, max(2, most)).round().astype(int)
    return [epochs[place] for place in places]


def all_rows(groups: Sequence[Group], problems: list[str]) -> pd.DataFrame:
    """group, seed and the columns of layers.jsonl, of as many epochs as fit the page."""
    sizes = [number(group.runs[0].summary.get("bn_layers")) or 20 for group in groups]
    most = int(EPOCH_ROWS / max(1, sum(sizes)))
    columns = [
        *("epoch", "index", "layer", "noise_before", "shift_ratio_se", "predicted_exact"),
        *_VARIANCES,
        *_RATIOS,
        *(f"{name}_se" for name in _RATIOS),
    ]
    found: list[tuple[Any, ...]] = []
    for group in groups:
        epochs = kept(_measured(group.runs[0]), most)
        for run in group.runs:
            nothing: list[Row] = []
            rows = attempt(problems, nothing, layer_rows, run.path, epochs)
            found += [
                (group.label, run.seed, *map(row.get, columns)) for row in rows if _whole(row)
            ]
    frame = pd.DataFrame(found, columns=["group", "seed", *columns])
    flags = ("noise_before", "predicted_exact")
    for name in flags:
        frame[name] = [value is True for value in frame[name]]
    numbers = [name for name in columns if name not in ("layer", *flags)]
    return frame.assign(**{name: _numbers(frame[name]) for name in numbers})


def _numbers(column: pd.Series) -> pd.Series:
    """As floats; what is no number as NaN."""
    try:
        return pd.to_numeric(column, errors="coerce").astype("float64")
    except OverflowError:  # an integer of hundreds of digits
        return column.map(number).astype("float64")


def _whole(row: Row) -> bool:
    return isinstance(row.get("layer"), str) and isinstance(row.get("index"), int)


def in_order(rows: pd.DataFrame) -> dict[str, str]:
    """Layer name → short name, in forward order."""
    first = rows.groupby("layer", sort=False)["index"].min().sort_values(kind="stable")
    names = [str(name) for name in first.index]
    short = [short_layer(name) for name in names]
    return dict(zip(names, short if len(set(short)) == len(names) else names, strict=True))


def short_layer(name: str) -> str:
    """`stage2.block1.branch.bn2` as `s2.b1.bn2`."""
    return re.sub(
        r"\b(stage|block|layer)(\d)", lambda m: m[1][0] + m[2], escape_control(name)
    ).replace(".branch.", ".")


def last_measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last epoch."""
    if rows.empty:
        return rows
    last = rows.groupby(["group", "seed"])["epoch"].transform("max")
    return rows[(rows["epoch"] == last) & rows["shift_ratio"].notna()]


def depth_of(last: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; `se` of the ratio from its own error in each run and from the seeds."""
    if last.empty:
        return frame_of([], ("group", "layer", "index", "ratio"))
    last = last.assign(squared=last["shift_ratio_se"] ** 2)
    by = last.groupby(["group", "index", "layer"], sort=False)
    frame = by[["shift_ratio", *_RATIOS, "squared"]].mean()
    frame["sd"] = by["shift_ratio"].std()
    frame["n"] = by["shift_ratio"].count()
    # A run's own error and the seeds' spread both tell how sure the mean is; the larger is taken.
    between = frame["sd"].fillna(0.0) ** 2
    frame["se"] = np.sqrt(np.maximum(frame.pop("squared").fillna(0.0), between) / frame["n"])
    frame["noise"] = by["noise_before"].first().map({True: "yes", False: "no"})
    names = {"shift_ratio": "ratio"} | {f"{name}_ratio": name for name in
        ("total", "local", "inherited", "predicted")}  # fmt: skip
    return frame.rename(columns=names).reset_index()


def behind_noise(last: pd.DataFrame) -> pd.DataFrame:
    """group, seed, layer: the layers with noise in front of them, in each run."""
    keys = ["group", "seed", "layer"]
    return last.loc[last["noise_before"].astype(bool), keys] if len(last) else frame_of([], keys)


def predictions_of(last: pd.DataFrame) -> pd.DataFrame:
    """Where there is a prediction; `apart` is measured less predicted in standard errors."""
    columns = ["group", "seed", "layer", "index", "local", "predicted", "se", "apart", "exact"]
    rows = last[last["noise_before"].astype(bool) & last["predicted_ratio"].notna()]
    rows = rows[rows["local_ratio"].notna()]
    frame = rows[["group", "seed", "layer", "index"]].copy()
    frame["local"], frame["predicted"] = rows["local_ratio"], rows["predicted_ratio"]
    errors = rows[["local_ratio_se", "predicted_ratio_se"]].fillna(0.0)
    frame["se"] = np.hypot(errors["local_ratio_se"], errors["predicted_ratio_se"])
    frame["apart"] = (frame["local"] - frame["predicted"]) / frame["se"]
    frame["exact"] = rows["predicted_exact"].astype(bool)
    return frame[columns].reset_index(drop=True)


def epochs_of(rows: pd.DataFrame) -> pd.DataFrame:
    frame = rows.groupby(["group", "epoch", "index", "layer"], sort=False)[list(_VARIANCES)].mean()
    frame = frame.reset_index()
    names = ("train", "running", "eval", "ratio")
    frame = frame.rename(columns=dict(zip(_VARIANCES, names, strict=True)))
    if frame.empty:
        return frame.assign(lag=[])
    frame["lag"] = np.maximum(frame["train"] / frame["running"], frame["running"] / frame["train"])
    return frame.replace([np.inf, -np.inf], np.nan)


def channels_of(groups: Sequence[Group], layers: list[str], problems: list[str]) -> pd.DataFrame:
    """group, layer, from, to, share: histograms over channels of eval/running variance."""
    most = max(1, CHANNEL_ROWS // max(1, _BINS * len(groups)))
    kept = layers if len(layers) <= most else [layers[i] for i in _spread(len(layers), most)]
    ratios: dict[str, dict[str, list[np.ndarray]]] = {layer: {} for layer in kept}
    for group in groups:
        for run in group.runs:
            nothing: dict[str, np.ndarray] = {}
            vectors = attempt(problems, nothing, RunFolder(run.path).read_channels)
            for layer in kept:
                found = _ratio(vectors, layer)
                if found is not None and found.size:
                    ratios[layer].setdefault(group.label, []).append(found)
    rows = [row for layer, of in ratios.items() if of for row in _histograms(layer, of)]
    return frame_of(rows, ("group", "layer", "from", "to", "share"))


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, most).round()})


def _ratio(vectors: dict[str, np.ndarray], layer: str) -> np.ndarray | None:
    met, kept = (vectors.get(f"{layer}.{kind}_variance") for kind in ("eval", "running"))
    if met is None or kept is None or met.shape != kept.shape:
        return None
    alive = (met > 1e-12) & (kept > 1e-12) & np.isfinite(met) & np.isfinite(kept)
    return np.asarray(met[alive] / kept[alive], dtype=np.float64)


def _histograms(layer: str, of: dict[str, list[np.ndarray]]) -> Iterator[Row]:
    """With the same bins for all groups, even on a logarithmic axis."""
    values = {label: np.log2(np.concatenate(parts)) for label, parts in of.items()}
    everything = np.concatenate(list(values.values()))
    low, high = min(0.0, float(everything.min())), max(0.0, float(everything.max()))
    edges = np.linspace(low - 1e-3, high + 1e-3, _BINS + 1)
    for label, logs in values.items():
        counts, _ = np.histogram(logs, edges)
        shares = [*(counts / counts.sum()), 0.0]  # an empty last one, so that steps come down
        # Bins before the first channel and behind the last one are left out.
        filled = np.flatnonzero(counts)
        for i in range(max(0, filled[0] - 1), filled[-1] + 2):
            low, high = 2 ** edges[i], 2 ** edges[min(i + 1, _BINS)]
            yield {"group": label, "layer": layer, "from": low, "to": high, "share": shares[i]}
