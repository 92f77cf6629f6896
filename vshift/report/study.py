"""Run folders, each read once, as tidy pandas frames that are small enough to travel in a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from vshift.compare import Comparison, compare
from vshift.compare.fields import Fields, metric
from vshift.compare.statistics import Difference
from vshift.errors import RunError
from vshift.report.layouts import StudyGroup, make_groups
from vshift.runs import files
from vshift.runs.files import Row
from vshift.runs.folder import LAYERS, MODES, RECALIBRATION, RunFolder
from vshift.runs.read import RunRecord, number
from vshift.runs.schema import LAYER_COLUMNS, SITE_KINDS, SUMMARY_COLUMNS, column_name
from vshift.runs.summary import error_of
from vshift.text import NONE, escape_control, format_number

T = TypeVar("T")

# Calibration scores by their key in a row, and the methods that only summary.json may have.
CALIBRATION = {"ece": "ECE, %", "nll": "NLL, nats", "brier": "Brier score"}
MONTE_CARLO = ("monte_carlo", "monte_carlo_bn")

# What a page can hold: beyond, epochs or layers are thinned out evenly.
EPOCH_ROWS = 20_000
CURVE_ROWS = 8_000
CHANNEL_ROWS = 15_000
_BINS = 24
_MOST_EPOCHS = 100_000  # as the config allows

_VARIANCES = {
    "train_variance": "train",
    "running_variance": "running",
    "eval_variance": "eval",
    "shift_ratio": "ratio",
}
_RATIOS = {f"{name}_ratio": name for name in ("total", "local", "inherited", "predicted")}
_FLAGS = ("noise_before", "predicted_exact")
# The values of a site that are compared by depth, each in words.
SITE_VALUES = {
    "shift_ratio": "shift ratio",
    "lag_free_ratio": "shift ratio without BN’s lag",
    "lag_ratio": "lag: training/running variance",
    "mean_shift": "shift of the mean, in standard deviations",
    "mean_tid": "mean train-inference discrepancy",
    "variance_tid": "variance train-inference discrepancy",
}
# What is a number in a row of layers.jsonl, and what of that a table shows.
_NUMBERS = [
    key for key, column in LAYER_COLUMNS.items() if not column.is_text and key not in _FLAGS
]
SHOWN = [LAYER_COLUMNS[key] for key in _NUMBERS if LAYER_COLUMNS[key].heading]
_LAYER = ["group", "index", "layer"]
_WHAT = ("accuracy", "rmse", "r2", "loss")
_SCORES = [f"{p}_{what}" for what in _WHAT for p in ("test", "validation", "train")]


@dataclass(frozen=True)
class Study:
    """Everything that the page shows.

    Attributes:
        groups: all configs, also those without a run that counts.
        score: `test_error`, percent; where nothing is classified `test_rmse` or `test_loss`.
        runs: group, layout, seed, score, shift_ratio_mean, shift_ratio_max; one row per run that
            counts.
        depth: one row per group and BN layer, of the last epoch, means over seeds.
        sites: one row per group and measured site of any kind, of the last epoch: kind, its number
            among those of its kind, layer and SITE_VALUES, means over seeds.
        layer_table: the same of every column of layers.jsonl that a table shows.
        noisy: group, seed, layer: the layers with noise that acts in front of them, in each run.
        predictions: those that have a prediction: local and predicted ratio.
        epochs: group, epoch, layer and the channel means of its variances, means over seeds.
        channels: histograms of eval/running variance over a layer's channels.
        curves: group, epoch and the scores' means and standard deviations over seeds.
        modes: group, data, noise, statistics, accuracy (percent), n.
        recalibration: group, seed, method and the score with it; `none` is as trained.
        calibration: group, seed, method, which of CALIBRATION, and its value; the methods are those
            of recalibration and Monte Carlo's.
        layers: the BN layers' names in forward order, with their short names.
        problems: sentences about what could not be read.
    """

    groups: list[StudyGroup]
    comparison: Comparison
    score: str
    runs: pd.DataFrame
    depth: pd.DataFrame
    sites: pd.DataFrame
    layer_table: pd.DataFrame
    noisy: pd.DataFrame
    predictions: pd.DataFrame
    epochs: pd.DataFrame
    channels: pd.DataFrame
    curves: pd.DataFrame
    modes: pd.DataFrame
    recalibration: pd.DataFrame
    calibration: pd.DataFrame
    layers: dict[str, str]
    problems: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[StudyGroup]:
        """The groups with a run that counts."""
        return [group for group in self.groups if group.runs]

    @property
    def points(self) -> str:
        """The unit after a difference of scores: ` points`, or nothing for a loss."""
        return " points" if self.score == "test_error" else ""

    @property
    def unit(self) -> str:
        """The unit of a difference of scores, in words."""
        of = "points of" if self.score == "test_error" else "of"
        return f"{of} {column_name(self.score)}"

    def format_score(self, value: float | None, sign: str = "") -> str:
        """A score or a difference of scores, with the digits of its column."""
        return format_number(value, SUMMARY_COLUMNS[self.score].digits, sign)

    def format_interval(self, found: Difference) -> str:
        """`+1.0 to +2.0`; – where there is no interval."""
        if found.low is None:
            return NONE
        return f"{self.format_score(found.low, '+')} to {self.format_score(found.high, '+')}"


def collect(records: Sequence[RunRecord], baseline: str | None = None) -> Study:
    """Read what the report needs of these runs.

    Raises:
        VShiftError: the baseline is the name of no config, or of more than one.
    """
    fields = Fields(records)  # reads each config once
    comparison = compare(fields, baseline)
    score = comparison.metric
    groups = make_groups(comparison)
    used = [group for group in groups if group.runs]
    problems: list[str] = []
    every = _layers(used, problems)
    final = every[every["epoch"] == every.groupby(["group", "seed"])["epoch"].transform("max")]
    rows, last = every[every["kind"] == "bn"], final[final["kind"] == "bn"]
    last = last[last["shift_ratio"].notna()]
    # Noise of strength 0, or of an earlier part of the run, changes nothing that could be checked.
    noisy = last[last["noise_before"] & (last["predicted_ratio"] != 1)]
    layers = _in_order(rows)
    recalibrated = list(_objects(used, RECALIBRATION, "methods", problems))
    return Study(
        groups=groups,
        comparison=comparison,
        score=score,
        runs=_runs(used, score),
        depth=_by_depth(last),
        sites=_by_site(final),
        layer_table=last.groupby(_LAYER, sort=False)[[c.key for c in SHOWN]].mean().reset_index(),
        noisy=noisy[["group", "seed", "layer"]],
        predictions=_predictions(noisy),
        epochs=_by_epoch(rows),
        channels=_channels(used, list(layers), problems),
        curves=_curves(used),
        modes=_modes(used, problems),
        recalibration=_recalibration(recalibrated, score),
        calibration=_calibration(used, recalibrated),
        layers=layers,
        problems=[escape_control(problem) for problem in problems],
    )


_Rows = Iterable[tuple[str, int, Row]]  # group, seed, and a row of a file


def _frame(
    rows: _Rows, texts: Sequence[str], numbers: Sequence[str], flags: Sequence[str] = ()
) -> pd.DataFrame:
    """group, seed and these keys of the rows; without rows that lack a text."""
    keys = [*texts, *numbers, *flags]
    values = [
        (label, seed, *map(row.get, keys))
        for label, seed, row in rows
        if all(isinstance(row.get(key), str) for key in texts)
    ]
    frame = pd.DataFrame(values, columns=["group", "seed", *keys])
    for key in numbers:  # as floats; what is no finite number as NaN
        column = frame[key]
        if not is_numeric_dtype(column) or is_bool_dtype(column):
            column = column.map(number)
        frame[key] = column.astype("float64").replace([np.inf, -np.inf], np.nan)
    for key in flags:
        frame[key] = frame[key].map(lambda value: value is True).astype(bool)
    return frame


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Note that a file is damaged, and continue without it."""
    try:
        yield
    except RunError as error:
        problems.append(str(error))


def mean_of(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, standard deviation and count of `value` for each combination of the keys."""
    by = frame.groupby(keys, sort=False)["value"]
    return by.agg(value="mean", sd="std", n="count").reset_index()


def thinned(values: Sequence[T], most: int) -> list[T]:
    """At most this many, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return list(values)
    places = np.linspace(0, len(values) - 1, max(2, most)).round().astype(int)
    return [values[place] for place in places]


# ---- layers


def read_layers(folder: Path, epochs: Iterable[int]) -> list[Row]:
    """The rows of layers.jsonl of these epochs, in the file's order.

    Most lines of a long run are of other epochs. Their beginning shows it, which is many times
    faster than parsing them; a line that begins in another way is parsed.

    Raises:
        RunError: a line before the last one is damaged, named as file:line.
    """
    wanted = set(epochs)
    begins = tuple(b'{"epoch": %d,' % epoch for epoch in wanted)

    def is_other(line: bytes) -> bool:
        return line.startswith(b'{"epoch": ') and not line.startswith(begins)

    rows = files.read_rows(folder / LAYERS, skip=is_other)
    return [row for row in rows if row.get("epoch") in wanted]


def _layers(groups: Sequence[StudyGroup], problems: list[str]) -> pd.DataFrame:
    """group, seed and the columns of layers.jsonl, of as many epochs as fit the page."""
    sizes = [number(group.runs[0].summary.get("bn_layers")) or 20 for group in groups]
    most = int(EPOCH_ROWS / max(1, sum(sizes)))
    found: list[tuple[str, int, Row]] = []
    for group in groups:
        config, summary = group.runs[0].config, group.runs[0].summary
        measure = config.get("measure")
        every = number(measure.get("every", 1) if isinstance(measure, dict) else 1) or 0
        last = number(config.get("epochs")) or number(summary.get("epoch")) or 0
        epochs: list[int] = []
        if every >= 1 and 1 <= last <= _MOST_EPOCHS:
            epochs = thinned([*range(int(every), int(last), int(every)), int(last)], most)
        for run in group.runs:
            with _noting(problems):
                for row in read_layers(run.path, epochs):
                    kind, cause = row.get("kind", "bn"), row.get("cause") or ""
                    # Of other sites than BN layers only the last epoch is shown.
                    if kind in SITE_KINDS and (kind == "bn" or row.get("epoch") == epochs[-1]):
                        found.append((group.label, run.seed, {**row, "kind": kind, "cause": cause}))
    frame = _frame(found, ["layer", "kind", "cause"], _NUMBERS, _FLAGS)
    return frame[frame["index"].notna() & frame["epoch"].notna()]


def _in_order(rows: pd.DataFrame) -> dict[str, str]:
    """Layer name → short name, in forward order."""
    first = rows.groupby("layer", sort=False)["index"].min().sort_values(kind="stable")
    names = [str(name) for name in first.index]
    short = [short_layer(name) for name in names]
    return dict(zip(names, short if len(set(short)) == len(names) else names, strict=True))


def short_layer(name: str) -> str:
    """`stage2.block1.branch.bn2` as `s2.b1.bn2`."""
    short = re.sub(r"\b(stage|block|layer)(\d)", lambda m: m[1][0] + m[2], escape_control(name))
    return short.replace(".branch.", ".")


def _by_depth(last: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; `se` of the ratio from its own error in each run and from the seeds."""
    by = last.assign(squared=last["shift_ratio_se"] ** 2).groupby(_LAYER, sort=False)
    frame = by[["shift_ratio", "lag_free_ratio", *_RATIOS, "squared"]].mean()
    frame["cause"] = by["cause"].agg(_most_frequent)
    frame["sd"] = by["shift_ratio"].std()
    frame["n"] = by["shift_ratio"].count()
    # A run's own error and the seeds' spread both tell how sure the mean is; the larger is taken.
    between = frame["sd"].fillna(0.0) ** 2
    frame["se"] = np.sqrt(np.maximum(frame.pop("squared").fillna(0.0), between) / frame["n"])
    frame["noise"] = by["noise_before"].first().map({True: "yes", False: "no"})
    names = {"shift_ratio": "ratio", "lag_free_ratio": "lag_free", **_RATIOS}
    return frame.rename(columns=names).reset_index()


def _most_frequent(causes: pd.Series) -> str:
    """The runs' most frequent word; of several the first in the alphabet."""
    return str(causes.mode().iloc[0])


def _by_site(final: pd.DataFrame) -> pd.DataFrame:
    by = final.groupby(["group", "kind", "index", "layer"], sort=False)
    frame = by[list(SITE_VALUES)].mean()
    frame["cause"], frame["n"] = by["cause"].agg(_most_frequent), by.size()
    frame = frame.dropna(how="all", subset=list(SITE_VALUES)).reset_index()
    frame = frame.sort_values(["group", "kind", "index"], kind="stable")
    frame["number"] = frame.groupby(["group", "kind"]).cumcount() + 1
    return frame.drop(columns="index")


def _predictions(noisy: pd.DataFrame) -> pd.DataFrame:
    """Where there is a prediction; `apart` is measured less predicted in standard errors."""
    rows = noisy[noisy["predicted_ratio"].notna() & noisy["local_ratio"].notna()]
    frame = rows[["group", "seed", "layer"]].copy()
    frame["local"], frame["predicted"] = rows["local_ratio"], rows["predicted_ratio"]
    errors = rows[["local_ratio_se", "predicted_ratio_se"]].fillna(0.0)
    frame["se"] = np.hypot(errors["local_ratio_se"], errors["predicted_ratio_se"])
    frame["apart"] = (frame["local"] - frame["predicted"]) / frame["se"]
    frame["exact"] = rows["predicted_exact"]
    return frame.reset_index(drop=True)


def _by_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; `lag` is the ratio of training and running variance."""
    by = rows.groupby(["group", "epoch", "index", "layer"], sort=False)
    frame = by[list(_VARIANCES)].mean().reset_index().rename(columns=_VARIANCES)
    frame["lag"] = np.maximum(frame["train"] / frame["running"], frame["running"] / frame["train"])
    return frame.replace([np.inf, -np.inf], np.nan).drop(columns="index")


def _channels(groups: Sequence[StudyGroup], layers: list[str], problems: list[str]) -> pd.DataFrame:
    """group, layer, from, to, share: histograms over channels of eval/running variance."""
    layers = thinned(layers, max(1, CHANNEL_ROWS // max(1, _BINS * len(groups))))
    ratios: dict[str, dict[str, list[np.ndarray]]] = {layer: {} for layer in layers}
    for group in groups:
        for run in group.runs:
            vectors: dict[str, np.ndarray] = {}
            with _noting(problems):
                vectors = RunFolder(run.path).read_channels()
            for layer in layers:
                top, bottom = (vectors.get(f"{layer}.{k}_variance") for k in ("eval", "running"))
                if top is None or bottom is None or top.shape != bottom.shape:
                    continue
                # Dead channels are left out.
                alive = (top > 1e-12) & (bottom > 1e-12) & np.isfinite(top) & np.isfinite(bottom)
                if alive.any():
                    found = np.asarray(top[alive] / bottom[alive], dtype=np.float64)
                    ratios[layer].setdefault(group.label, []).append(found)
    rows = (row for layer, of in ratios.items() if of for row in _histograms(layer, of))
    return pd.DataFrame(rows, columns=["group", "layer", "from", "to", "share"])


def _histograms(layer: str, of: dict[str, list[np.ndarray]]) -> Iterator[Row]:
    """With the same bins for all groups, even on a logarithmic axis."""
    values = {label: np.log2(np.concatenate(parts)) for label, parts in of.items()}
    everything = np.concatenate(list(values.values()))
    low, high = min(0.0, float(everything.min())), max(0.0, float(everything.max()))
    edges = np.linspace(low - 1e-3, high + 1e-3, _BINS + 1)
    for label, logs in values.items():
        counts, _ = np.histogram(logs, edges)
        shares = [*(counts / counts.sum()), 0.0]  # an empty last one, so that steps come down
        # Bins before the first channel and after the last one are left out.
        filled = np.flatnonzero(counts)
        for i in range(max(0, filled[0] - 1), filled[-1] + 2):
            low, high = 2 ** edges[i], 2 ** edges[min(i + 1, _BINS)]
            yield {"group": label, "layer": layer, "from": low, "to": high, "share": shares[i]}


# ---- scores


def _runs(groups: Sequence[StudyGroup], score: str) -> pd.DataFrame:
    keys = (score, "shift_ratio_mean", "shift_ratio_max")
    rows = [
        (group.label, group.noise.layout, run.seed, *(number(metric(run, key)) for key in keys))
        for group in groups
        for run in group.runs
    ]
    return pd.DataFrame(rows, columns=["group", "layout", "seed", "score", *keys[1:]])


def _curves(groups: Sequence[StudyGroup]) -> pd.DataFrame:
    """For each score its mean, and low and high one standard deviation away."""
    rows = [(g.label, run.seed, row) for g in groups for run in g.runs for row in run.metrics]
    frame = _frame(rows, [], ["epoch", *_SCORES])
    frame = frame[frame["epoch"].notna()]
    epochs = thinned(sorted(frame["epoch"].unique()), max(10, CURVE_ROWS // max(1, len(groups))))
    by = frame[frame["epoch"].isin(epochs)].groupby(["group", "epoch"], sort=False)
    scores = [score for score in _SCORES if frame[score].notna().any()]
    result, spread = by[scores].mean(), by[scores].std().fillna(0.0)
    for score in scores:
        result[f"{score}_low"] = result[score] - spread[score]
        result[f"{score}_high"] = result[score] + spread[score]
    return result.assign(n=by.size()).reset_index()


def _objects(groups: Sequence[StudyGroup], name: str, key: str, problems: list[str]) -> _Rows:
    """The objects in the list `key` of a JSON file of every run."""
    for group in groups:
        for run in group.runs:
            content: Row | None = None
            with _noting(problems):
                content = files.read_json(run.path / name)
            rows = (content or {}).get(key)
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict):
                    yield group.label, run.seed, row


def _modes(groups: Sequence[StudyGroup], problems: list[str]) -> pd.DataFrame:
    keys = ["data", "noise", "statistics"]
    frame = _frame(_objects(groups, MODES, "modes", problems), keys, ["accuracy", "r2"])
    frame["value"] = frame["accuracy"].fillna(100 * frame["r2"])
    return mean_of(frame[frame["value"].notna()], ["group", *keys])


def _recalibration(rows: _Rows, score: str) -> pd.DataFrame:
    frame = _frame(rows, ["method"], ["test_accuracy", "test_rmse", "test_loss"])
    frame["test_error"] = frame["test_accuracy"].map(error_of)
    frame["value"] = frame[score]
    frame["method"] = frame["method"].map(escape_control)
    return frame.loc[frame["value"].notna(), ["group", "seed", "method", "value"]]


def _calibration(groups: Sequence[StudyGroup], rows: _Rows) -> pd.DataFrame:
    # Monte Carlo's scores are in summary.json, or where `vshift recalibrate` measured them.
    summaries = [
        (group.label, run.seed,
         {"method": method, **{f"test_{k}": run.summary.get(f"{method}_{k}") for k in CALIBRATION}})
        for method in MONTE_CARLO for group in groups for run in group.runs
    ]  # fmt: skip
    keys = {f"test_{key}": heading for key, heading in CALIBRATION.items()}
    frame = _frame([*summaries, *rows], ["method"], list(keys)).rename(columns=keys)
    frame["method"] = frame["method"].map(escape_control)
    wide = frame.groupby(["group", "seed", "method"], sort=False).last().reset_index()
    long = wide.melt(["group", "seed", "method"], list(keys.values()), "score", "value")
    return long[long["value"].notna()]
