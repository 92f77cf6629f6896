"""Frames → altair charts. Each is a pure function of a study; None where there is nothing to draw.

All charts take their rows from named data sets, which the page holds once. Those that draw groups
share the parameter `hidden`, the labels that the page's legends have switched off.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from vshift.report.data import Study
from vshift.report.groups import PALETTE, SHAPES
from vshift.report.parts import (
    AS_TRAINED,
    EPOCH,
    GROUP,
    LAYER,
    MIDDLE,
    SEED,
    SEEDS,
    VISIBLE,
    epoch_axis,
    group_colour,
    group_shape,
    hidden,
    no_shift,
    number,
    score_title,
    select,
    source,
)  # fmt: skip

# ---- by depth ----------------------------------------------------------------------------------


def depth(study: Study) -> Any:
    """Shift ratio over the BN layers in forward order, a line a group, ± sd over seeds."""
    if study.depth.empty:
        return None
    base = source("depth").transform_filter(VISIBLE)
    ends = {"low": "datum.ratio - datum.sd", "high": "datum.ratio + datum.sd"}
    y = alt.Y("ratio:Q", title="shift ratio", scale=alt.Scale(zero=False))
    colour, x = group_colour(study), _layer_axis(study)
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
            LAYER,
            GROUP,
            number("ratio", "shift ratio"),
            number("sd", "sd over seeds"),
            number("predicted", "predicted (local)"),
            number("local", "local"),
            number("inherited", "inherited"),
            alt.Tooltip("noise:N", title="noise in front"),
            SEEDS,
        ],
    )
    drawn = alt.layer(no_shift(y="y:Q"), spread, lines, points)
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
    points = base.transform_filter(VISIBLE).mark_point(filled=True, size=55, opacity=0.85).encode(
        x=alt.X("predicted:Q", title="predicted from s² and the weights",
            scale=alt.Scale(zero=False)),
        y=alt.Y("local:Q", title="measured local ratio", scale=alt.Scale(zero=False)),
        color=group_colour(study),
        shape=group_shape(study),
        tooltip=[
            LAYER,
            GROUP,
            SEED,
            number("local", "measured", ".4f"),
            number("predicted", "predicted", ".4f"),
            number("se", "standard error (s.e.)", ".5f"),
            number("apart", "apart, in s.e.", "+.1f"),
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
        .transform_filter(VISIBLE)
        .mark_point(filled=True, size=80, opacity=0.85)
        .encode(
            x=alt.X("shift_mean:Q", title="mean shift ratio", scale=alt.Scale(zero=False)),
            y=alt.Y("score:Q", title=score_title(study), scale=alt.Scale(zero=False)),
            color=group_colour(study),
            shape=group_shape(study),
            tooltip=[
                GROUP,
                SEED,
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
        .transform_filter(VISIBLE)
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
            GROUP,
            EPOCH,
            number("value", "mean"),
            number("low", "mean − sd"),
            number("high", "mean + sd"),
            SEEDS,
        ],
    )
    return alt.layer(band, line, points).add_params(hidden(), choice).properties(height=300)


def recalibration(study: Study) -> Any:
    """Scores with each method's BN statistics; a line from as trained to the best."""
    if study.recalibration.empty:
        return None
    groups = [g.label for g in study.used]
    tried = [method for method in study.recalibration["method"] if method != "none"]
    methods = list(dict.fromkeys([AS_TRAINED, *tried]))
    y = alt.Y("group:N", sort=groups, title=None, axis=alt.Axis(labelLimit=140))
    title = score_title(study)
    base = source("recalibration").transform_filter(VISIBLE)
    # One place for each method, in the order in which people read: as trained first.
    colours = ["#777777", *PALETTE, "#B8860B"][: len(methods)]
    scale = alt.Scale(domain=methods, range=colours)
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(methods))]
    marks = alt.Scale(domain=methods, range=shapes)
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
            GROUP,
            alt.Tooltip("method:N", title="statistics"),
            number("value", title, ".2f"),
            number("sd", "sd over seeds", ".2f"),
            SEEDS,
        ],
    )
    height = max(120, 26 * len(groups))
    return alt.layer(span, points).add_params(hidden()).properties(height=height)
