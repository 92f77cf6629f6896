"""Frames → altair charts. Each is a pure function of a study; None where there is nothing to draw.

All charts take their rows from named data sets, which the page holds once. Those that draw groups
share the parameter `hidden`, the labels that the page's legends have switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import pandas as pd

from vshift.report.data import Study

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
INK, GRID, MIDDLE = "#333333", "#dddddd", "#888888"
# Perceptually even and readable with every kind of colour blindness.
SCHEME: Literal["viridis"] = "viridis"

CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "white",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": MIDDLE,
        "tickColor": MIDDLE,
        "labelLimit": 160,
        "labelSeparation": 8,
    },
    "legend": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "labelColor": INK, "titleColor": INK, "symbolLimit": 0, "symbolOpacity": 1,
        "labelLimit": 220},
    "range": {"category": ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]},
}  # fmt: skip

_VISIBLE = "indexof(hidden, datum.group) < 0"


@dataclass(frozen=True)
class Figure:
    """A chart and the words around it.

    Attributes:
        missing: what to say instead of the chart where there is no data for it.
        grouped: colours are the groups', so that the page's legend belongs to it.
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


def source(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name=name))


def hidden() -> Any:
    return alt.param(name="hidden", value=[])


def group_colour(study: Study) -> alt.Color:
    groups = study.used
    scale = alt.Scale(domain=[g.label for g in groups], range=[g.colour for g in groups])
    return alt.Color("group:N", scale=scale, title=None)


def group_shape(study: Study) -> alt.Shape:
    groups = study.used
    scale = alt.Scale(domain=[g.label for g in groups], range=[g.shape for g in groups])
    return alt.Shape("group:N", scale=scale, title=None)


def select(
    name: str, label: str, options: list[str], value: str, labels: list[str] | None = None
) -> Any:
    """A drop-down above the chart."""
    bind = alt.binding_select(options=options, labels=labels or options, name=label)
    return alt.param(name=name, value=value, bind=bind)


def number(field: str, title: str, form: str = ".3f") -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def epoch_axis(frame: pd.DataFrame) -> alt.X:
    """Ticks at whole epochs: at each one where there are few."""
    epochs = sorted(int(epoch) for epoch in frame["epoch"].dropna().unique())
    if len(epochs) <= 12:
        return alt.X("epoch:Q", axis=alt.Axis(grid=False, format="d", values=epochs))
    return alt.X("epoch:Q", axis=alt.Axis(grid=False, format="d"))


def score_title(study: Study) -> str:
    return "test error (%)" if study.score == "test_error" else "test loss"


# ---- by depth ----------------------------------------------------------------------------------


def depth(study: Study) -> Any:
    """Shift ratio over the BN layers in forward order, a line a group, ± sd over seeds."""
    if study.depth.empty:
        return None
    base = source("depth").transform_filter(_VISIBLE)
    ends = {"low": "datum.ratio - datum.sd", "high": "datum.ratio + datum.sd"}
    y = alt.Y("ratio:Q", title="shift ratio", scale=alt.Scale(zero=False))
    colour, x = group_colour(study), _layer_axis(study)
    one = alt.Chart(alt.InlineData(values=[{"y": 1}])).mark_rule(color=MIDDLE, strokeDash=[4, 3])
    lines = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    spread = (
        base.transform_calculate(**ends)
        .mark_rule(strokeWidth=1.5)
        .encode(x=x, y=alt.Y("low:Q", title="shift ratio"), y2="high:Q", color=colour)
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=group_shape(study),
        tooltip=[
            alt.Tooltip("layer:N", title="layer"),
            alt.Tooltip("group:N", title="config"),
            number("ratio", "shift ratio"),
            number("sd", "sd over seeds"),
            number("predicted", "predicted (local)"),
            number("local", "local"),
            number("inherited", "inherited"),
            alt.Tooltip("noise:N", title="noise in front"),
            alt.Tooltip("n:Q", title="n (seeds)"),
        ],
    )
    drawn = alt.layer(one.encode(y="y:Q"), spread, lines, points)
    return drawn.add_params(hidden()).properties(height=340)


def _layer_axis(study: Study) -> alt.X:
    """By name where the names fit and each place in the order has one, else by number."""
    if len(study.layers) <= 24 and study.depth.groupby("index")["layer"].nunique().max() == 1:
        axis = alt.Axis(labelAngle=-40, grid=False)
        return alt.X("short:O", sort=list(study.layers.values()), title="BN layer, input to output",
            axis=axis)  # fmt: skip
    return alt.X("number:Q", title="BN layer, counted from the input", axis=alt.Axis(grid=False))


def prediction(study: Study) -> Any:
    """Measured local ratio against the one predicted from s² and the weights, a point a run."""
    if study.predictions.empty:
        return None
    base = source("predictions")
    low = float(study.predictions[["local", "predicted"]].min().min())
    high = float(study.predictions[["local", "predicted"]].max().max())
    ends = alt.InlineData(values=[{"x": low, "y": low}, {"x": high, "y": high}])
    line = alt.Chart(ends).mark_line(color=MIDDLE, strokeDash=[4, 3]).encode(x="x:Q", y="y:Q")
    points = base.transform_filter(_VISIBLE).mark_point(filled=True, size=55, opacity=0.85).encode(
        x=alt.X("predicted:Q", title="predicted from s² and the weights",
            scale=alt.Scale(zero=False)),
        y=alt.Y("local:Q", title="measured local ratio", scale=alt.Scale(zero=False)),
        color=group_colour(study),
        shape=group_shape(study),
        tooltip=[
            alt.Tooltip("layer:N", title="layer"),
            alt.Tooltip("group:N", title="config"),
            alt.Tooltip("seed:Q", title="seed"),
            number("local", "measured", ".4f"),
            number("predicted", "predicted", ".4f"),
            number("se", "standard error", ".4f"),
            alt.Tooltip("exact:N", title="formula exact"),
        ],
    )  # fmt: skip
    return alt.layer(line, points).add_params(hidden()).properties(height=300)


# ---- scores ------------------------------------------------------------------------------------


def scatter(study: Study) -> Any:
    """Mean shift ratio against test error, a point a run."""
    if study.runs.empty or not study.runs["shift_mean"].notna().any():
        return None
    return (
        source("runs")
        .transform_filter(_VISIBLE)
        .mark_point(filled=True, size=80, opacity=0.85)
        .encode(
            x=alt.X("shift_mean:Q", title="mean shift ratio", scale=alt.Scale(zero=False)),
            y=alt.Y("score:Q", title=score_title(study), scale=alt.Scale(zero=False)),
            color=group_colour(study),
            shape=group_shape(study),
            tooltip=[
                alt.Tooltip("group:N", title="config"),
                alt.Tooltip("seed:Q", title="seed"),
                number("score", score_title(study), ".2f"),
                number("shift_mean", "mean shift ratio"),
                number("shift_max", "largest shift ratio"),
            ],
        )
        .add_params(hidden())
        .properties(height=300)
    )


CURVES = {
    "test_accuracy": "test accuracy (%)",
    "validation_accuracy": "validation accuracy (%)",
    "train_accuracy": "training accuracy (%)",
    "test_loss": "test loss",
    "validation_loss": "validation loss",
    "train_loss": "training loss",
}


def curves(study: Study) -> Any:
    """A score over epochs, mean and standard deviation over seeds."""
    shown = [s for s in CURVES if s in study.curves and study.curves[s].notna().any()]
    if not shown:
        return None
    choice = select("score", "Show", shown, shown[0], [CURVES[s] for s in shown])
    base = (
        source("curves")
        .transform_filter(_VISIBLE)
        .transform_calculate(
            value="datum[score]", low="datum[score + '_low']", high="datum[score + '_high']"
        )
        .transform_filter("isValid(datum.value)")
    )
    x = epoch_axis(study.curves)
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    colour = group_colour(study)
    band = base.mark_area(opacity=0.15).encode(
        x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    points = base.mark_point(filled=True, size=35, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=group_shape(study),
        tooltip=[
            alt.Tooltip("group:N", title="config"),
            alt.Tooltip("epoch:Q", title="epoch"),
            number("value", "mean"),
            number("low", "mean − sd"),
            number("high", "mean + sd"),
            alt.Tooltip("n:Q", title="n (seeds)"),
        ],
    )
    return alt.layer(band, line, points).add_params(hidden(), choice).properties(height=300)


def recalibration(study: Study) -> Any:
    """Scores with each method's BN statistics; a line from as trained to the best."""
    if study.recalibration.empty:
        return None
    groups = [g.label for g in study.used]
    methods = list(dict.fromkeys(["none", *study.recalibration["method"]]))
    y = alt.Y("group:N", sort=groups, title=None, axis=alt.Axis(labelLimit=140))
    title = score_title(study)
    base = source("recalibration").transform_filter(_VISIBLE)
    # One place for each method, in the order in which people read: as trained first.
    scale = alt.Scale(domain=methods, range=["#777777", "#D55E00", "#0072B2", "#009E73", "#CC79A7",
        "#E69F00", "#56B4E9", "#B8860B"][: len(methods)])  # fmt: skip
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
    marks = alt.Scale(domain=methods, range=[shapes[i % 6] for i in range(len(methods))])
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False))
    span = base.mark_line(color=MIDDLE, strokeWidth=1.5, opacity=0.6).encode(
        x=x, y=y, detail="group:N"
    )
    points = base.mark_point(filled=True, size=90, opacity=0.9).encode(
        x=x,
        y=y,
        color=alt.Color("method:N", scale=scale, title="statistics"),
        shape=alt.Shape("method:N", scale=marks, title="statistics"),
        tooltip=[
            alt.Tooltip("group:N", title="config"),
            alt.Tooltip("method:N", title="statistics"),
            number("value", title, ".2f"),
            number("sd", "sd over seeds", ".2f"),
            alt.Tooltip("n:Q", title="n (seeds)"),
        ],
    )
    height = max(120, 26 * len(groups))
    return alt.layer(span, points).add_params(hidden()).properties(height=height)
