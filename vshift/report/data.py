"""Run folders, each read once → tidy pandas frames, small enough to travel inside a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from vshift.compare import Comparison, compare
from vshift.compare.text import visible
from vshift.errors import RunError
from vshift.report.groups import Group, make_groups
from vshift.report.reading import layer_rows
from vshift.runs import files
from vshift.runs.folder import MODES, RECALIBRATION, RunFolder
from vshift.runs.reading import RunRecord, number

Row = dict[str, Any]
T = TypeVar("T")

# What a page can hold: beyond so many rows epochs or layers are thinned out evenly.
EPOCH_ROWS = 25_000
CHANNEL_ROWS = 15_000
CURVE_ROWS = 8_000
_BINS = 24

MODE_KEYS = ("group", "data", "noise", "statistics")
SCORES = ("test_accuracy", "train_accuracy", "test_loss", "train_loss")
_VARIANCES = ("train_variance", "running_variance", "eval_variance", "shift_ratio")
_RATIOS = ("total_ratio", "local_ratio", "inherited_ratio", "predicted_ratio")


@dataclass(frozen=True)
class Study:
    """Everything that the page shows.

    Attributes:
        groups: all configs, also those without a run that counts.
        score: `test_error`, percent; or `test_loss` where nothing is classified.
        runs: group, layout, seed, score, shift_mean, shift_max; one row a run that counts.
        depth: one row a group and BN layer, of the last epoch, means over seeds.
        predictions: one row a run and layer that noise reaches: local and predicted ratio.
        epochs: group, epoch, layer and the channel means of its variances, means over seeds.
        channels: histograms of eval/running variance over a layer's channels.
        curves: group, epoch and the scores' means and standard deviations over seeds.
        modes: group, data, noise, statistics, accuracy (percent), n.
        recalibration: group, seed, method and the score with it; `none` is as trained.
        layers: the BN layers' names in forward order, with their short names.
        problems: sentences about what could not be read.
    """

    groups: list[Group]
    comparison: Comparison
    score: str
    runs: pd.DataFrame
    depth: pd.DataFrame
    predictions: pd.DataFrame
    epochs: pd.DataFrame
    channels: pd.DataFrame
    curves: pd.DataFrame
    modes: pd.DataFrame
    recalibration: pd.DataFrame
    layers: dict[str, str]
    problems: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[Group]:
        """The groups with a run that counts."""
        return [group for group in self.groups if group.runs]


def collect(records: Sequence[RunRecord], baseline: str | None = None) -> Study:
    """Read what the report needs of these runs.

    Raises:
        VShiftError: no config, or more than one, is called as the baseline says.
    """
    comparison = compare(records, baseline)
    groups = make_groups(records, comparison)
    used = [group for group in groups if group.runs]
    has_error = any(row["test_error_mean"] is not None for row in comparison.rows)
    score = "test_error" if has_error else "test_loss"
    problems: list[str] = []
    rows = _layer_rows(used, problems)
    last = _last_measured(rows)
    depth = _depth(last)
    layers = _in_order(rows)
    return Study(
        groups=groups,
        comparison=comparison,
        score=score,
        runs=_frame(_run_rows(used, score)),
        depth=depth,
        predictions=_predictions(last),
        epochs=_epochs(rows),
        channels=_channels(used, list(layers), problems),
        curves=_curves(used),
        modes=mean_of(
            _frame(_mode_rows(used, problems), (*MODE_KEYS, "value")), list(MODE_KEYS)
        ),
        recalibration=_frame(
            _recalibration_rows(used, score, problems), ("group", "seed", "method", "value")
        ),
        layers=layers,
        problems=[visible(problem) for problem in problems],
    )


def _frame(rows: Iterable[Row], columns: Sequence[str] = ()) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows))
    return frame if len(frame) else pd.DataFrame(columns=list(columns))


def _try(reader: Callable[[], T], otherwise: T, problems: list[str]) -> T:
    try:
        return reader()
    except RunError as error:
        problems.append(str(error))
        return otherwise


def score_of(run: RunRecord, score: str) -> float | None:
    """A run's test error in percent, or its test loss."""
    accuracy = number(run.summary.get("test_accuracy"))
    if score == "test_error":
        return None if accuracy is None else 100 - accuracy
    return number(run.summary.get(score))


def _run_rows(groups: Sequence[Group], score: str) -> Iterator[Row]:
    for group in groups:
        for run in group.runs:
            yield {
                "group": group.label,
                "layout": group.noise.layout,
                "seed": run.seed,
                "score": score_of(run, score),
                "shift_mean": number(run.summary.get("shift_ratio_mean")),
                "shift_max": number(run.summary.get("shift_ratio_max")),
            }


# ---- layers ------------------------------------------------------------------------------------


def _measured(run: RunRecord) -> list[int]:
    """The epochs that layers.jsonl has rows of, by the config."""
    measure = run.config.get("measure")
    measure = measure if isinstance(measure, dict) else {}
    last = number(run.config.get("epochs")) or number(run.summary.get("epoch")) or 0
    every = number(measure.get("every", 1)) or 0
    return [*range(int(every), int(last), int(every)), int(last)] if every >= 1 else []


def _kept(epochs: list[int], most: int) -> list[int]:
    """At most so many epochs, evenly spaced, with the first and the last."""
    if len(epochs) <= most:
        return epochs
    places = np.linspace(0, len(epochs) - 1, max(2, most)).round().astype(int)
    return [epochs[place] for place in places]


def _layer_rows(groups: Sequence[Group], problems: list[str]) -> pd.DataFrame:
    """group, seed and the columns of layers.jsonl, of as many epochs as fit the page."""
    sizes = [number(group.runs[0].summary.get("bn_layers")) or 20 for group in groups]
    most = int(EPOCH_ROWS / max(1, sum(sizes)))
    columns = ("epoch", "index", "layer", "noise_before", "shift_ratio_se", "predicted_exact")
    columns += (*_VARIANCES, *_RATIOS, *(f"{name}_se" for name in _RATIOS))
    found: list[tuple[Any, ...]] = []
    for group in groups:
        epochs = _kept(_measured(group.runs[0]), most)
        for run in group.runs:
            rows = _try(lambda run=run: layer_rows(run.path, epochs), [], problems)
            found += [
                (group.label, run.seed, *map(row.get, columns)) for row in rows if _whole(row)
            ]
    frame = pd.DataFrame(found, columns=["group", "seed", *columns])
    numbers = [name for name in columns if name not in ("layer", "noise_before", "predicted_exact")]
    return frame.assign(**{c: pd.to_numeric(frame[c], errors="coerce") for c in numbers})


def _whole(row: Row) -> bool:
    return isinstance(row.get("layer"), str) and isinstance(row.get("index"), int)


def _in_order(rows: pd.DataFrame) -> dict[str, str]:
    """Layer name → short name, in forward order."""
    first = rows.groupby("layer", sort=False)["index"].min().sort_values(kind="stable")
    names = [str(name) for name in first.index]
    short = [short_layer(name) for name in names]
    return dict(zip(names, short if len(set(short)) == len(names) else names, strict=True))


def short_layer(name: str) -> str:
    """`stage2.block1.branch.bn2` as `s2.b1.bn2`."""
    return re.sub(r"\b(stage|block|layer)(\d)", lambda m: m[1][0] + m[2], visible(name)).replace(
        ".branch.", "."
    )


def _last_measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last epoch."""
    if rows.empty:
        return rows
    last = rows.groupby(["group", "seed"])["epoch"].transform("max")
    return rows[(rows["epoch"] == last) & rows["shift_ratio"].notna()]


def _depth(last: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; `se` of the ratio from its own error in each run and from the seeds."""
    if last.empty:
        return _frame([], ("group", "layer", "index", "ratio"))
    by = last.groupby(["group", "index", "layer"], sort=False)
    frame = by[["shift_ratio", *_RATIOS, *_VARIANCES[:3]]].mean()
    frame["sd"] = by["shift_ratio"].std()
    frame["n"] = by["shift_ratio"].count()
    within = by["shift_ratio_se"].agg(lambda se: float(np.nanmean(se**2)) if se.notna().any() else 0)
    between = frame["sd"].fillna(0.0) ** 2
    # Either is an estimate of the mean's uncertainty; the larger one is taken.
    frame["se"] = np.sqrt(np.maximum(within, between) / frame["n"])
    frame["noise"] = by["noise_before"].first().map({True: "yes", False: "no"})
    names = {"shift_ratio": "ratio"} | {f"{name}_ratio": name for name in
        ("total", "local", "inherited", "predicted")}  # fmt: skip
    frame = frame.rename(columns=names).reset_index()
    frame["low"] = frame["ratio"] - frame["sd"].fillna(0.0)
    frame["high"] = frame["ratio"] + frame["sd"].fillna(0.0)
    return frame


def _predictions(last: pd.DataFrame) -> pd.DataFrame:
    columns = ["group", "seed", "layer", "index", "local", "predicted", "se", "exact"]
    rows = last[(last["noise_before"] == True) & last["predicted_ratio"].notna()]  # noqa: E712
    rows = rows[rows["local_ratio"].notna()]
    frame = rows[["group", "seed", "layer", "index"]].copy()
    frame["local"], frame["predicted"] = rows["local_ratio"], rows["predicted_ratio"]
    errors = rows[["local_ratio_se", "predicted_ratio_se"]].fillna(0.0)
    frame["se"] = np.hypot(errors["local_ratio_se"], errors["predicted_ratio_se"])
    frame["exact"] = rows["predicted_exact"] == True  # noqa: E712
    return frame[columns].reset_index(drop=True)


def _epochs(rows: pd.DataFrame) -> pd.DataFrame:
    frame = rows.groupby(["group", "epoch", "index", "layer"], sort=False)[list(_VARIANCES)].mean()
    frame = frame.reset_index()
    names = ("train", "running", "eval", "ratio")
    frame = frame.rename(columns=dict(zip(_VARIANCES, names, strict=True)))
    if frame.empty:
        return frame.assign(lag=[])
    frame["lag"] = np.maximum(frame["train"] / frame["running"], frame["running"] / frame["train"])
    return frame.replace([np.inf, -np.inf], np.nan)


# ---- channels ----------------------------------------------------------------------------------


def _channels(groups: Sequence[Group], layers: list[str], problems: list[str]) -> pd.DataFrame:
    """group, layer, from, to, share: histograms over channels of eval/running variance."""
    most = max(1, CHANNEL_ROWS // max(1, _BINS // 2 * len(groups)))
    kept = layers if len(layers) <= most else [layers[i] for i in _spread(len(layers), most)]
    ratios: dict[str, dict[str, list[np.ndarray]]] = {layer: {} for layer in kept}
    for group in groups:
        for run in group.runs:
            vectors = _try(RunFolder(run.path).read_channels, {}, problems)
            for layer in kept:
                found = _ratio(vectors, layer)
                if found is not None and found.size:
                    ratios[layer].setdefault(group.label, []).append(found)
    rows = [row for layer, of in ratios.items() if of for row in _histograms(layer, of)]
    return _frame(rows, ("group", "layer", "from", "to", "share"))


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


# ---- scores ------------------------------------------------------------------------------------


def _curves(groups: Sequence[Group]) -> pd.DataFrame:
    """Wide: for each score its mean, and low and high a standard deviation away."""
    most = max(10, CURVE_ROWS // max(1, len(groups)))
    rows = [
        {"group": g.label, "epoch": row.get("epoch"), **{s: number(row.get(s)) for s in SCORES}}
        for g in groups
        for run in g.runs
        for row in run.metrics
        if isinstance(row.get("epoch"), int)
    ]
    if not rows:
        return _frame([], ("group", "epoch", *SCORES))
    frame = pd.DataFrame(rows).astype(dict.fromkeys(SCORES, "float64"))
    kept = _kept(sorted(frame["epoch"].unique()), most)
    by = frame[frame["epoch"].isin(kept)].groupby(["group", "epoch"], sort=False)
    result, spread = by[list(SCORES)].mean(), by[list(SCORES)].std().fillna(0.0)
    for score in SCORES:
        result[f"{score}_low"] = result[score] - spread[score]
        result[f"{score}_high"] = result[score] + spread[score]
    return result.assign(n=by.size()).reset_index()


def _mode_rows(groups: Sequence[Group], problems: list[str]) -> Iterator[Row]:
    for label, _, row in _json_rows(groups, MODES, "modes", problems):
        value = number(row.get("accuracy"))
        words = {key: row.get(key) for key in ("data", "noise", "statistics")}
        if value is not None and all(isinstance(word, str) for word in words.values()):
            yield {"group": label, **words, "value": value}


def _recalibration_rows(
    groups: Sequence[Group], score: str, problems: list[str]
) -> Iterator[Row]:
    for label, seed, row in _json_rows(groups, RECALIBRATION, "methods", problems):
        accuracy, loss = (number(row.get(f"test_{key}")) for key in ("accuracy", "loss"))
        error = None if accuracy is None else 100 - accuracy
        value = error if score == "test_error" else loss
        if value is not None and isinstance(row.get("method"), str):
            method = visible(row["method"])
            yield {"group": label, "seed": seed, "method": method, "value": value}


def _json_rows(
    groups: Sequence[Group], name: str, key: str, problems: list[str]
) -> Iterator[tuple[str, int, Row]]:
    for group in groups:
        for run in group.runs:
            content = _try(lambda run=run: files.read_json(run.path / name), None, problems) or {}
            rows = content.get(key)
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict):
                    yield group.label, run.seed, row


def mean_of(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, standard deviation and count of `value` for each combination of the keys."""
    by = frame.groupby(keys, sort=False)["value"]
    return by.agg(value="mean", sd="std", n="count").reset_index()
