"""The charts: pure functions from a study to an altair chart, None where there is no data.

All charts take their rows from named data sets, which the page holds once. Those that draw configs
share the parameter `hidden`, the labels that the page's legends have switched off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from vshift.report.layouts import PALETTE, SHAPES, grouped
from vshift.report.study import MONTE_CARLO, SITE_VALUES, Study
from vshift.runs.schema import SITE_KINDS, column_name
from vshift.text import escape_control, natural

INK, GRID, MIDDLE = "#333333", "#dddddd", "#888888"
# Perceptually even and readable with every kind of colour blindness.
SCHEME: Literal["viridis"] = "viridis"

CONFIG: dict[str, Any] = {
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif",
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
        "labelFlush": False,
    },
    "legend": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "labelColor": INK, "titleColor": INK, "symbolLimit": 0, "symbolOpacity": 1,
        "labelLimit": 220},
    "range": {"category": list(PALETTE)},
}  # fmt: skip

AS_TRAINED = "as trained"  # what recalibration.json calls `none`
HIDDEN = alt.param(name="hidden", value=[])
VISIBLE = "indexof(hidden, datum.group) < 0"
NOT_ZERO = alt.Scale(zero=False)

# ---- what charts are made of


def number(field: str, title: str, form: str = ".3f") -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def word(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:N", title=title)


LAYER, GROUP = word("layer", "layer"), word("group", "config")
SEED = alt.Tooltip("seed:Q", title="seed")
EPOCH = alt.Tooltip("epoch:Q", title="epoch")
SEEDS = alt.Tooltip("n:Q", title="n (seeds)")


def source(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name=name))


def dots(chart: alt.Chart, size: int, opacity: float = 1) -> Any:
    return chart.mark_point(filled=True, size=size, opacity=opacity)


def by_config(study: Study) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of each config's marks, as in the page's legend."""
    labels = [g.label for g in study.used]
    colours = alt.Scale(domain=labels, range=[g.colour for g in study.used])
    shapes = alt.Scale(domain=labels, range=[g.shape for g in study.used])
    return (
        alt.Color("group:N", scale=colours, title=None),
        alt.Shape("group:N", scale=shapes, title=None),
    )


def select(
    name: str, label: str, options: Sequence[str], value: str, labels: Sequence[str] | None = None
) -> Any:
    """A drop-down above the chart; it starts with its first option if it lacks the value."""
    bind = alt.binding_select(options=list(options), labels=list(labels or options), name=label)
    return alt.param(name=name, value=value if value in options else options[0], bind=bind)


def select_from(study: Study, frame: pd.DataFrame, what: Literal["group", "layer"]) -> Any:
    """A drop-down of the configs or layers in a frame; it starts with the most shifted one.

    That is the config with the largest mean ratio, or the layer with the largest one of any config.
    """
    names = [g.label for g in study.used] if what == "group" else list(study.layers)
    present = set(frame[what])
    options = [name for name in names if name in present]
    first = options[0]
    if not study.depth.empty:
        ratios = study.depth.groupby(what, sort=False)["ratio"]
        first = str((ratios.mean() if what == "group" else ratios.max()).idxmax())
    name = "config" if what == "group" else "layer"
    return select(name, name.capitalize(), options, first)


def no_shift(**at: Any) -> Any:
    """A dashed line where a ratio is 1, of a layered chart: `no_shift(y="y:Q")`."""
    (axis,) = at
    rule = alt.Chart(alt.InlineData(values=[{axis: 1}])).mark_rule(color=MIDDLE, strokeDash=[4, 3])
    return rule.encode(**at)


def epoch_axis(frame: pd.DataFrame) -> alt.X:
    """Ticks at whole epochs: at each one where there are few."""
    epochs = sorted(int(epoch) for epoch in frame["epoch"].dropna().unique())
    values = epochs if len(epochs) <= 12 else alt.Undefined
    return alt.X("epoch:Q", axis=alt.Axis(grid=False, format="d", tickMinStep=1, values=values))


_ABOVE = {"x": 0, "y": 0, "dy": -8, "align": "left", "baseline": "bottom"}


def chosen_name(param: str, words: Mapping[str, str], **place: Any) -> Any:
    """The name of an axis whose values a drop-down chooses, as a mark.

    A title cannot follow the drop-down, which a saved picture lacks.
    """
    text = {"expr": f"{json.dumps(words)}[{param}]"}
    base = alt.Chart(alt.InlineData(values=[{}]), name="chosen")
    return base.mark_text(text=text, fontSize=12, color=INK, **place)


def layer_rows(study: Study) -> tuple[alt.Y, int]:
    """The axis with the input's layer on top, and the height of a map with a row per layer."""
    count = len(study.layers)
    y = alt.Y("short:O", sort=list(study.layers.values()), title=None,
        axis=alt.Axis(labelOverlap=True))  # fmt: skip
    return y, max(120, round(count * max(6.0, min(22.0, 620 / count))))


def heat(field: str, title: str) -> alt.Color:
    """1, no shift, is the dark end."""
    scale = alt.Scale(scheme=SCHEME, domainMin=1, type="log")
    legend = alt.Legend(title=title, gradientLength=120, tickCount=4, format="~g")
    return alt.Color(f"{field}:Q", scale=scale, legend=legend)


def score_title(study: Study) -> str:
    percent = " (%)" if study.score == "test_error" else ""
    return column_name(study.score) + percent


# ---- by depth


def depth(study: Study) -> Any:
    """Shift ratio over the BN layers in forward order, a line per config, ± sd over seeds."""
    if study.depth.empty:
        return None
    # By name where the names fit and each place in the order has one, else by number.
    if len(study.layers) <= 24 and study.depth.groupby("index")["layer"].nunique().max() == 1:
        x = alt.X("short:O", sort=list(study.layers.values()), title="BN layer, input to output",
            axis=alt.Axis(labelAngle=-40, labelOverlap=True, grid=False))  # fmt: skip
    else:
        axis = alt.Axis(grid=False, format="d", tickMinStep=1)
        x = alt.X("number:Q", title="BN layer, counted from the input", axis=axis)
    colour, shape = by_config(study)
    base = source("depth").transform_filter(VISIBLE)
    ends = {"low": "datum.ratio - datum.sd", "high": "datum.ratio + datum.sd"}
    low = alt.Y("low:Q", title="shift ratio")
    spread = base.transform_calculate(**ends).mark_rule(strokeWidth=1.5)
    ratios = base.encode(x=x, y=alt.Y("ratio:Q", title="shift ratio", scale=NOT_ZERO), color=colour)
    points = dots(ratios, 70).encode(
        shape=shape,
        tooltip=[
            LAYER, GROUP, number("ratio", "shift ratio"), number("sd", "sd over seeds"),
            number("lag_free", "without BN’s lag"), word("cause", "shift or BN’s lag"),
            number("predicted", "predicted (local)"), number("local", "local"),
            number("inherited", "inherited"), word("noise", "noise in front"), SEEDS,
        ],
    )  # fmt: skip
    drawn = alt.layer(
        no_shift(y="y:Q"),
        spread.encode(x=x, y=low, y2="high:Q", color=colour),
        ratios.mark_line(strokeWidth=2),
        points,
    )
    return drawn.add_params(HIDDEN).properties(height=340)


def sites(study: Study) -> Any:
    """Lag, means and discrepancies by depth, of BN layers or of another kind of site."""
    frame = study.sites
    values = [value for value in SITE_VALUES if frame[value].notna().any()]
    kinds = [kind for kind in SITE_KINDS if (frame["kind"] == kind).any()]
    if kinds in ([], ["bn"]) and values in ([], ["shift_ratio"]):
        return None  # as the chart by depth
    colour, shape = by_config(study)
    base = (
        source("sites")
        .transform_filter(VISIBLE)
        .transform_filter("datum.kind == kind")
        .transform_calculate(value="datum[what]")
        .transform_filter("isValid(datum.value)")
        .encode(
            x=alt.X("number:Q", title="site, counted from the input",
                axis=alt.Axis(grid=False, format="d", tickMinStep=1)),
            y=alt.Y("value:Q", title=None, scale=NOT_ZERO),
            color=colour,
        )
    )  # fmt: skip
    points = dots(base, 55).encode(
        shape=shape,
        tooltip=[
            LAYER, GROUP, number("value", "value"), word("cause", "shift or BN’s lag"),
            number("shift_ratio", "shift ratio"), number("lag_free_ratio", "without BN’s lag"),
            number("mean_shift", "shift of the mean"), SEEDS,
        ],
    )  # fmt: skip
    return (
        alt.layer(base.mark_line(strokeWidth=2), points, chosen_name("what", SITE_VALUES, **_ABOVE))
        .add_params(
            HIDDEN,
            select("kind", "Sites", kinds, kinds[0], [SITE_KINDS[kind] for kind in kinds]),
            select("what", "Show", values, values[0], [SITE_VALUES[value] for value in values]),
        )
        .properties(height=300)
    )


def prediction(study: Study) -> Any:
    """Measured local ratio against the one predicted from s² and the weights, a point per run."""
    if study.predictions.empty:
        return None
    ratios = study.predictions[["local", "predicted"]]
    ends = [{"x": float(end), "y": float(end)} for end in (ratios.min().min(), ratios.max().max())]
    colour, shape = by_config(study)
    line = alt.Chart(alt.InlineData(values=ends)).mark_line(color=MIDDLE, strokeDash=[4, 3])
    points = dots(source("predictions").transform_filter(VISIBLE), 55, 0.85).encode(
        x=alt.X("predicted:Q", title="predicted from s² and the weights", scale=NOT_ZERO),
        y=alt.Y("local:Q", title="measured local ratio", scale=NOT_ZERO),
        color=colour,
        shape=shape,
        tooltip=[
            LAYER, GROUP, SEED, number("local", "measured", ".4f"),
            number("predicted", "predicted", ".4f"), number("se", "standard error (s.e.)", ".5f"),
            number("apart", "apart, in s.e.", "+.1f"), word("exact", "formula exact"),
        ],
    )  # fmt: skip
    drawn = alt.layer(line.encode(x="x:Q", y="y:Q"), points)
    return drawn.add_params(HIDDEN).properties(height=300)


def over_strengths(study: Study) -> Any:
    """Layer × rate, one layout at a time, of the layouts that were run at two rates or more."""
    noises = [group.noise for group in study.used if group.has_noise]
    found = grouped((noise.layout, noise.strength) for noise in noises if noise.strength)
    layouts = [layout for layout, strengths in found.items() if len(set(strengths)) > 1]
    if study.depth.empty or not layouts:
        return None
    variances = {g.noise.strength: g.noise.variance or 0.0 for g in study.used}
    order = sorted(variances, key=lambda strength: (variances[strength], natural(strength)))
    y, height = layer_rows(study)
    return (
        source("depth")
        .transform_filter("datum.layout == layout")
        .mark_rect()
        .encode(
            x=alt.X("strength:O", sort=order, title="drop rate, β or σ",
                axis=alt.Axis(labelAngle=0)),
            y=y,
            color=heat("ratio", "shift ratio"),
            tooltip=[
                LAYER, GROUP, word("strength", "rate, β or σ"), number("ratio", "shift ratio"),
                number("local", "local"), number("inherited", "inherited"), SEEDS,
            ],
        )
        .add_params(select("layout", "Layout", layouts, layouts[0]))
        .properties(height=height)
    )  # fmt: skip


def channels(study: Study) -> Any:
    """How a layer's channels differ: histogram of eval/running variance, a line per config."""
    frame = study.channels
    if frame.empty:
        return None
    x = alt.X(
        "from:Q",
        title="eval variance / running variance of a channel",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format="~g", grid=False),
    )
    y = alt.Y("share:Q", title="share of channels", axis=alt.Axis(format="%"), stack=None)
    visible = source("channels").transform_filter(f"{VISIBLE} && datum.layer == layer")
    base = visible.encode(x=x, y=y, color=by_config(study)[0])
    # Steps with a faint fill: filled bars of several configs hide each other.
    steps = base.mark_area(interpolate="step-after", opacity=0.12, line=False)
    outline = base.mark_line(interpolate="step-after", strokeWidth=1.8)
    bars = base.mark_rect(opacity=0.001).encode(
        x2="to:Q",
        y2=alt.Y2Datum(0),
        tooltip=[
            LAYER, GROUP, number("from", "ratio from"), number("to", "to"),
            number("share", "share", ".1%"),
        ],
    )  # fmt: skip
    return (
        alt.layer(no_shift(x="x:Q"), steps, outline, bars)
        .add_params(HIDDEN, select_from(study, frame, "layer"))
        .properties(height=300)
    )


# ---- over epochs


_LAYER_VALUES = {
    "ratio": "shift ratio (running against eval variance)",
    "lag": "training against running variance",
}


def over_epochs(study: Study) -> Any:
    """Layer × epoch, one config at a time."""
    frame = study.epochs
    values = [v for v in _LAYER_VALUES if frame[frame[v].notna()]["epoch"].nunique() > 1]
    if not values:
        return None
    y, height = layer_rows(study)
    return (
        source("epochs")
        .transform_filter("datum.group == config")
        .transform_calculate(value="datum[what]")
        .transform_filter("isValid(datum.value)")
        .mark_rect()
        .encode(
            x=alt.X("epoch:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=y,
            color=heat("value", "ratio"),
            tooltip=[
                LAYER, alt.Tooltip("epoch:O", title="epoch"), number("value", "ratio"),
                number("train", "training variance", ".4g"),
                number("running", "running variance", ".4g"),
                number("eval", "eval variance", ".4g"),
            ],
        )
        .add_params(
            select_from(study, frame, "group"),
            select("what", "Show", values, values[0], [_LAYER_VALUES[v] for v in values]),
        )
        .properties(height=height)
    )  # fmt: skip


def variances(study: Study) -> Any:
    """The three variances of one layer's input over epochs, in one config."""
    if study.epochs.empty:
        return None
    names = ["training batches", "running", "eval mode"]
    legend = alt.Legend(title=None, orient="top", columns=1)
    colours = alt.Scale(domain=names, range=["#0072B2", "#E69F00", "#D55E00"])
    shapes = alt.Scale(domain=names, range=list(SHAPES[:3]))
    kind = (
        f"datum.key == 'train' ? '{names[0]}' : datum.key == 'running' ? '{names[1]}' : "
        f"'{names[2]}'"
    )
    rows = (
        source("epochs")
        .transform_filter("datum.group == config && datum.layer == layer")
        .transform_fold(["train", "running", "eval"], as_=["key", "variance"])
        .transform_filter("isValid(datum.variance)")
        .transform_calculate(kind=kind)
        .encode(
            y=alt.Y("variance:Q", title="variance, mean over channels"),
            color=alt.Color("kind:N", scale=colours, legend=legend),
        )
    )
    base = rows.encode(x=epoch_axis(study.epochs))
    points = dots(base, 55).encode(
        shape=alt.Shape("kind:N", scale=shapes, legend=legend),
        tooltip=[LAYER, word("kind", "variance"), EPOCH, number("variance", "value", ".4g")],
    )
    # The eval variance of the last epoch over all of them: often the only one there is.
    last = rows.transform_filter(f"datum.kind == '{names[2]}'").transform_joinaggregate(
        last="max(epoch)"
    )
    last = last.transform_filter("datum.epoch == datum.last")
    end = last.mark_rule(strokeDash=[4, 3], opacity=0.7)
    return (
        alt.layer(end, base.mark_line(strokeWidth=2), points)
        .add_params(
            select_from(study, study.epochs, "group"), select_from(study, study.epochs, "layer")
        )
        .properties(height=300)
    )


_SCORES = {
    "test_accuracy": "test accuracy (%)",
    "validation_accuracy": "validation accuracy (%)",
    "train_accuracy": "training accuracy (%)",
    "test_rmse": "test RMSE",
    "test_r2": "test R²",
    "validation_rmse": "validation RMSE",
    "validation_r2": "validation R²",
    "train_rmse": "training RMSE",
    "train_r2": "training R²",
    "test_loss": "test loss",
    "validation_loss": "validation loss",
    "train_loss": "training loss",
}


def curves(study: Study) -> Any:
    """A score over epochs, mean and standard deviation over seeds."""
    scores = [s for s in _SCORES if s in study.curves and study.curves[s].notna().any()]
    if not scores:
        return None
    colour, shape = by_config(study)
    base = (
        source("curves")
        .transform_filter(VISIBLE)
        .transform_calculate(
            value="datum[score]", low="datum[score + '_low']", high="datum[score + '_high']"
        )
        .transform_filter("isValid(datum.value)")
        .encode(
            x=epoch_axis(study.curves),
            y=alt.Y("value:Q", title=None, scale=NOT_ZERO),
            color=colour,
        )
    )
    points = dots(base, 35).encode(
        shape=shape,
        tooltip=[
            GROUP, EPOCH, number("value", "mean"), number("low", "mean − sd"),
            number("high", "mean + sd"), SEEDS,
        ],
    )  # fmt: skip
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    choice = select("score", "Show", scores, scores[0], [_SCORES[s] for s in scores])
    name = chosen_name("score", _SCORES, **_ABOVE)
    drawn = alt.layer(band, base.mark_line(strokeWidth=2), points, name)
    return drawn.add_params(HIDDEN, choice).properties(height=300)


# ---- scores


def scatter(study: Study) -> Any:
    """Mean shift ratio against the score, a point per run."""
    if study.runs.empty or not study.runs["shift_ratio_mean"].notna().any():
        return None
    title, (colour, shape) = score_title(study), by_config(study)
    return (
        dots(source("runs").transform_filter(VISIBLE), 80, 0.85)
        .encode(
            x=alt.X("shift_ratio_mean:Q", title="mean shift ratio", scale=NOT_ZERO),
            y=alt.Y("score:Q", title=title, scale=NOT_ZERO),
            color=colour,
            shape=shape,
            tooltip=[
                GROUP, SEED, number("score", title, ".2f"),
                number("shift_ratio_mean", "mean shift ratio"),
                number("shift_ratio_max", "largest shift ratio"),
            ],
        )
        .add_params(HIDDEN)
        .properties(height=300)
    )  # fmt: skip


def recalibration(study: Study) -> Any:
    """Scores with each method's BN statistics; a line from as trained to the best."""
    if study.recalibration.empty:
        return None
    base = source("recalibration")
    return _by_method(study, study.recalibration, base, score_title(study)).add_params(HIDDEN)


def calibration(study: Study) -> Any:
    """Calibration as trained and with each method's BN statistics, one score at a time."""
    frame = study.calibration
    if frame.empty:
        return None
    scores = list(dict.fromkeys(frame["score"]))
    base = source("calibration").transform_filter("datum.score == calibration")
    words = {score: f"{score} (lower is better)" for score in scores}
    place = {"x": {"expr": "width / 2"}, "y": "height", "dy": 26, "baseline": "top"}
    name = chosen_name("calibration", words, **place)
    drawn = alt.layer(_by_method(study, frame, base, None), name)
    return drawn.add_params(HIDDEN, select("calibration", "Score", scores, scores[0]))


def _by_method(study: Study, frame: pd.DataFrame, rows: alt.Chart, title: str | None) -> Any:
    """A line per config with a mark for each method of recalibration."""
    labels = [g.label for g in study.used]
    tried = [method for method in frame["method"] if method != "none"]
    tried.sort(key=MONTE_CARLO.__contains__)  # last, so that methods share their marks in figures
    methods = list(dict.fromkeys([AS_TRAINED, *tried]))
    colours = alt.Scale(domain=methods, range=["#777777", *PALETTE, "#B8860B"][: len(methods)])
    shapes = alt.Scale(domain=methods, range=[SHAPES[i % len(SHAPES)] for i in range(len(methods))])
    base = rows.transform_filter(VISIBLE).encode(
        x=alt.X("value:Q", title=title, scale=NOT_ZERO),
        y=alt.Y("group:N", sort=labels, title=None, axis=alt.Axis(labelLimit=140)),
    )
    points = dots(base, 90, 0.9).encode(
        color=alt.Color("method:N", scale=colours, title="statistics"),
        shape=alt.Shape("method:N", scale=shapes, title="statistics"),
        tooltip=[
            GROUP, word("method", "statistics"), number("value", title or "value", ".4~g"),
            number("sd", "sd over seeds", ".2~g"), SEEDS,
        ],
    )  # fmt: skip
    span = base.mark_line(color=MIDDLE, strokeWidth=1.5, opacity=0.6).encode(detail="group:N")
    return alt.layer(span, points).properties(height=max(120, 26 * len(labels)))


def modes(study: Study) -> Any:
    """Accuracy (or 100·R²) with noise on and off × BN statistics, one config and part at a time."""
    frame = study.modes
    if frame.empty:
        return None
    parts = sorted({escape_control(part) for part in frame["data"]})  # test first
    names = list(dict.fromkeys(escape_control(name) for name in frame["statistics"]))
    # The same colours for all configs, and on each a text that can be read.
    low, high = float(frame["value"].min()), float(frame["value"].max())
    scale = alt.Scale(scheme=SCHEME, domain=[low, high])
    title = "accuracy (%)" if study.score == "test_error" else "R² (%)"
    bright = f"datum.value > {(low + high) / 2!r}"
    base = (
        source("modes")
        .transform_filter("datum.group == config && datum.data == part")
        .encode(
            x=alt.X("noise:N", sort=["off", "on"], title="noise", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("statistics:N", sort=names, title="BN statistics"),
        )
    )
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", scale=scale, title=title),
        tooltip=[
            GROUP, word("noise", "noise"), word("statistics", "BN statistics"),
            number("value", title, ".2f"), number("sd", "sd over seeds", ".2f"), SEEDS,
        ],
    )  # fmt: skip
    text = base.mark_text(fontSize=13).encode(
        text=alt.Text("value:Q", format=".1f"),
        color=alt.condition(bright, alt.value("black"), alt.value("white")),
    )
    return (
        alt.layer(cells, text)
        .add_params(select_from(study, frame, "group"), select("part", "Images", parts, parts[0]))
        .properties(height=max(160, 38 * len(names)))
    )
