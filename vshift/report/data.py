"""Run folders, each read once → tidy pandas frames, small enough to travel inside a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vshift.compare import Comparison, compare
from vshift.compare.fields import Fields
from vshift.report.groups import Group, make_groups
from vshift.report.layers import (
    all_rows,
    attempt,
    behind_noise,
    channels_of,
    depth_of,
    epochs_of,
    frame_of,
    in_order,
    kept,
    last_measured,
    predictions_of,
)  # fmt: skip
from vshift.runs import files
from vshift.runs.folder import MODES, RECALIBRATION
from vshift.runs.read import RunRecord, number
from vshift.text import escape_control

Row = dict[str, Any]

CURVE_ROWS = 8_000  # beyond, epochs are thinned out evenly

MODE_KEYS = ("group", "data", "noise", "statistics")
SCORES = tuple(
    f"{part}_{what}" for what in ("accuracy", "loss") for part in ("test", "validation", "train")
)


@dataclass(frozen=True)
class Study:
    """Everything that the page shows.

    Attributes:
        groups: all configs, also those without a run that counts.
        score: `test_error`, percent; or `test_loss` where nothing is classified.
        runs: group, layout, seed, score, shift_mean, shift_max; one row a run that counts.
        depth: one row a group and BN layer, of the last epoch, means over seeds.
        behind: group, seed, layer: the layers with noise in front of them, in each run.
        predictions: those that have a prediction: local and predicted ratio.
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
    behind: pd.DataFrame
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
    fields = Fields(records)  # reads each config once
    comparison = compare(fields, baseline)
    has_error = any(row["test_error_mean"] is not None for row in comparison.rows)
    score = "test_error" if has_error else "test_loss"
    if not has_error and any(row["test_loss_mean"] is not None for row in comparison.rows):
        comparison = compare(fields, baseline, difference="test_loss")
    groups = make_groups(comparison)
    used = [group for group in groups if group.runs]
    problems: list[str] = []
    rows = all_rows(used, problems)
    last = last_measured(rows)
    depth = depth_of(last)
    layers = in_order(rows)
    return Study(
        groups=groups,
        comparison=comparison,
        score=score,
        runs=frame_of(_run_rows(used, score)),
        depth=depth,
        behind=behind_noise(last),
        predictions=predictions_of(last),
        epochs=epochs_of(rows),
        channels=channels_of(used, list(layers), problems),
        curves=_curves(used),
        modes=mean_of(frame_of(_mode_rows(used, problems), (*MODE_KEYS, "value")), list(MODE_KEYS)),
        recalibration=frame_of(
            _recalibration_rows(used, score, problems), ("group", "seed", "method", "value")
        ),
        layers=layers,
        problems=[escape_control(problem) for problem in problems],
    )


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
        return frame_of([], ("group", "epoch", *SCORES))
    frame = pd.DataFrame(rows).astype(dict.fromkeys(SCORES, "float64"))
    epochs = kept(sorted(frame["epoch"].unique()), most)
    by = frame[frame["epoch"].isin(epochs)].groupby(["group", "epoch"], sort=False)
    found = [score for score in SCORES if frame[score].notna().any()]
    result, spread = by[found].mean(), by[found].std().fillna(0.0)
    for score in found:
        result[f"{score}_low"] = result[score] - spread[score]
        result[f"{score}_high"] = result[score] + spread[score]
    return result.assign(n=by.size()).reset_index()


def _mode_rows(groups: Sequence[Group], problems: list[str]) -> Iterator[Row]:
    for label, _, row in _json_rows(groups, MODES, "modes", problems):
        value = number(row.get("accuracy"))
        words = {key: row.get(key) for key in ("data", "noise", "statistics")}
        if value is not None and all(isinstance(word, str) for word in words.values()):
            yield {"group": label, **words, "value": value}


def _recalibration_rows(groups: Sequence[Group], score: str, problems: list[str]) -> Iterator[Row]:
    for label, seed, row in _json_rows(groups, RECALIBRATION, "methods", problems):
        accuracy, loss = (number(row.get(f"test_{key}")) for key in ("accuracy", "loss"))
        error = None if accuracy is None else 100 - accuracy
        value = error if score == "test_error" else loss
        if value is not None and isinstance(row.get("method"), str):
            method = escape_control(row["method"])
            yield {"group": label, "seed": seed, "method": method, "value": value}


def _json_rows(
    groups: Sequence[Group], name: str, key: str, problems: list[str]
) -> Iterator[tuple[str, int, Row]]:
    for group in groups:
        for run in group.runs:
            nothing: Row | None = None
            content = attempt(problems, nothing, files.read_json, run.path / name) or {}
            rows = content.get(key)
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict):
                    yield group.label, run.seed, row


def mean_of(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, standard deviation and count of `value` for each combination of the keys."""
    by = frame.groupby(keys, sort=False)["value"]
    return by.agg(value="mean", sd="std", n="count").reset_index()
