"""The list of figures, their data, and files of them for papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vshift.report import charts
from vshift.report.study import Study, mean_of
from vshift.runs import files
from vshift.text import to_jsonable


@dataclass(frozen=True)
class Figure:
    """A chart and the words around it.

    Attributes:
        missing: what to say instead of the chart where there is no data for it.
        data: the name of its data set in `frames`.
        grouped: colours are the configs', so that the page's legend belongs to it.
        wide: takes the page's full width.
    """

    id: str
    title: str
    caption: str
    missing: str
    data: str
    draw: Callable[[Study], Any]
    grouped: bool = False
    wide: bool = False


FIGURES = (
    Figure("depth", "Shift ratio by depth",
        "One line per config, from the input to the output: the ratio of each BN layer’s running "
        "and eval variance. 1 is no shift; bars are ± sd over seeds.",
        "No shift was measured: measure.every must be 1 or more, and the network needs BN.",
        "depth", charts.depth, grouped=True, wide=True),
    Figure("sites", "Lag, means and other sites",
        "At the last epoch, means over seeds, from the input on. The shift ratio without BN’s lag "
        "is the one that BN would have with statistics of the final weights; the shift of the mean "
        "is |train mean − eval mean| in standard deviations; discrepancies are of a batch’s "
        "statistics from the running ones. measure.sites adds other kinds of sites.",
        "Nothing to show: measure.explain_batches must be 1 or more.",
        "sites", charts.sites, grouped=True),
    Figure("prediction", "Prediction against measurement",
        "Each point is a layer with noise in front of it, in one run. On the dashed line the "
        "measured local ratio is what the noise variance s² and the weights predict.",
        "Nothing to compare: measure.explain_batches must be 2 or more, and noise must reach a BN "
        "layer through at most one linear layer.",
        "predictions", charts.prediction, grouped=True),
    Figure("scatter", "Mean shift ratio against score",
        "One point per run: its mean shift ratio over BN layers and its score at the last epoch.",
        "No run has a mean shift ratio: measure.every must be 1 or more.",
        "runs", charts.scatter, grouped=True),
    Figure("strengths", "Layer × rate",
        "Shift ratio of each BN layer at the last epoch, mean over seeds.",
        "No layout was run at two rates or more; grid: {network.noise.rate: [0.1, 0.3, 0.5]} does.",
        "depth", charts.over_strengths),
    Figure("epochs", "Layer × epoch",
        "How a ratio grows in training, mean over seeds. The shift ratio needs the eval variance, "
        "which is measured in the last epoch and in those that measure.eval_epochs names. Training "
        "against running variance has noise on both sides: near 1 once BN’s average keeps up.",
        "Only one epoch was measured: measure.every: 1 writes each, measure.eval_epochs: all also "
        "the shift ratio.",
        "epochs", charts.over_epochs),
    Figure("variances", "Three variances of a layer",
        "Of BN’s input: the variance in training batches, the running variance that BN keeps, and "
        "the eval variance: dashed that of the last epoch, and a curve with measure.eval_epochs: "
        "all.",
        "No layer was measured: measure.every must be 1 or more.",
        "epochs", charts.variances),
    Figure("channels", "A layer’s channels",
        "Whether a shift is that of all channels or of a few: eval variance over running variance "
        "of each channel at the last epoch, all seeds together. Left of 1, testing has less.",
        "No run has channels.safetensors with eval variances: measure.every must be 1 or more.",
        "channels", charts.channels, grouped=True),
    Figure("curves", "Learning curves",
        "Mean over seeds, with a band of ± sd.",
        "No run has epochs in metrics.jsonl.",
        "curves", charts.curves, grouped=True),
    Figure("recalibration", "Before and after recalibration",
        "Score with the BN statistics as trained and re-estimated by each method; a method left of "
        "“as trained” recovers something.",
        "No run has recalibration.json: recalibration.methods: [precise, layerwise] or "
        "`vshift recalibrate` writes it.",
        "recalibration", charts.recalibration),
    Figure("calibration", "Calibration",
        "How well probabilities say how often the network is right, on the test images: expected "
        "calibration error, negative log-likelihood or Brier score, as trained, after each "
        "recalibration and for the mean of many passes. Further left is better.",
        "No run has calibration scores: nothing is classified, or an earlier version trained.",
        "calibration", charts.calibration),
    Figure("modes", "Noise × BN statistics",
        "Accuracy with noise on and off, BN on the batch’s, on running and on re-estimated "
        "statistics: precise over running with noise off is what stale statistics cost. Test "
        "images are not cropped as in training: the statistics of their batches fit less.",
        "No run has modes.json: measure.modes: true or “vshift recalibrate --modes” writes it.",
        "modes", charts.modes),
)  # fmt: skip


def frames(study: Study) -> dict[str, pd.DataFrame]:
    """The named data sets of the charts, each with just the columns that one of them reads."""

    def named(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(short=frame["layer"].map(study.layers)) if len(frame) else frame

    def by_method(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
        return mean_of(frame, keys).replace({"method": {"none": charts.AS_TRAINED}})

    depth = named(study.depth)
    if len(depth):
        by_label = {g.label: g.noise for g in study.used}
        noises = [by_label[label] for label in depth["group"]]
        depth = depth.assign(
            number=depth["index"] + 1,
            layout=[noise.layout for noise in noises],
            strength=[noise.strength for noise in noises],
        ).drop(columns=["index", "total", "se"])
    return {
        "depth": depth,
        "predictions": study.predictions,
        "runs": study.runs,
        "sites": study.sites,
        "epochs": named(study.epochs),
        "channels": study.channels,
        "curves": study.curves,
        "recalibration": by_method(study.recalibration, ["group", "method"]),
        "calibration": by_method(study.calibration, ["group", "method", "score"]),
        "modes": study.modes,
    }


def specs(study: Study) -> dict[str, dict[str, Any]]:
    """Figure id → Vega-Lite specification without its data; without those of nothing to draw."""
    result = {}
    for figure in FIGURES:
        chart = figure.draw(study)
        if chart is not None:
            spec = chart.properties(title="").to_dict(validate=False)
            spec = {k: v for k, v in spec.items() if k not in ("config", "title")}
            result[figure.id] = {
                **spec,
                "width": "container",
                "config": charts.CONFIG,
                "autosize": {"type": "fit-x", "contains": "padding"},
                "description": figure.caption,
            }
    return result


def write_figures(study: Study, folder: Path) -> list[Path]:
    """Every figure as SVG and PDF, sized for a column of a paper, text as text.

    Raises:
        RunError: a file cannot be written.
    """
    import vl_convert as vlc

    data, drawn = frames(study), specs(study)
    written = []
    for figure in FIGURES:
        if figure.id not in drawn:
            continue
        spec = drawn[figure.id]
        rows = [to_jsonable(row) for row in data[figure.data].to_dict("records")]
        datasets = {**spec.get("datasets", {}), figure.data: rows}
        whole = {**spec, "width": 420, "datasets": datasets, "autosize": {"type": "pad"}}
        for suffix, content in (
            ("svg", vlc.vegalite_to_svg(whole).encode()),
            ("pdf", vlc.vegalite_to_pdf(whole)),
        ):
            path = folder / f"{figure.id}.{suffix}"
            files.write_named(path, "--figures", content)
            written.append(path)
    return written
