"""Charts of one layer or one config at a time, chosen in a drop-down: heat maps and histograms."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from vshift.compare.groups import NO_NOISE
from vshift.report.data import Study
from vshift.report.groups import SHAPES
from vshift.report.parts import (
    EPOCH,
    GROUP,
    LAYER,
    SCHEME,
    SEEDS,
    VISIBLE,
    epoch_axis,
    group_colour,
    hidden,
    no_shift,
    number,
    select,
    source,
)  # fmt: skip
from vshift.text import escape_control, natural


def most_shifted_group(study: Study) -> str:
    return str(study.depth.groupby("group", sort=False)["ratio"].mean().idxmax())


def most_shifted_layer(study: Study) -> str:
    return str(study.depth.groupby("layer", sort=False)["ratio"].max().idxmax())


def _layer_rows(study: Study) -> tuple[alt.Y, int]:
    """The axis with the input's layer on top, and the height of a map with a row a layer."""
    count = len(study.layers)
    y = alt.Y("short:O", sort=list(study.layers.values()), title=None,
        axis=alt.Axis(labelOverlap=True))  # fmt: skip
    return y, max(120, round(count * max(6.0, min(22.0, 620 / count))))


_LAYER_VALUES = {
    "ratio": "shift ratio (running against eval variance)",
    "lag": "training against running variance",
}


def over_epochs(study: Study) -> Any:
    """Layer × epoch, one config at a time."""
    frame = study.epochs
    if frame.empty:
        return None
    values = [v for v in _LAYER_VALUES if frame[frame[v].notna()]["epoch"].nunique() > 1]
    if not values:
        return None
    y, height = _layer_rows(study)
    groups = _labels(study, frame)
    return (
        source("epochs")
        .transform_filter("datum.group == config")
        .transform_calculate(value="datum[what]")
        .transform_filter("isValid(datum.value)")
        .mark_rect()
        .encode(
            x=alt.X("epoch:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=y,
            color=_heat("value", "ratio"),
            tooltip=[
                LAYER,
                alt.Tooltip("epoch:O", title="epoch"),
                number("value", "ratio"),
                number("train", "training variance", ".4g"),
                number("running", "running variance", ".4g"),
                number("eval", "eval variance", ".4g"),
            ],
        )
        .add_params(
            select("config", "Config", groups, _first(most_shifted_group(study), groups)),
            select("what", "Show", values, values[0], [_LAYER_VALUES[v] for v in values]),
        )
        .properties(height=height)
    )


def _labels(study: Study, frame: pd.DataFrame) -> list[str]:
    """The groups that a frame has rows of, in the page's order."""
    return [g.label for g in study.used if (frame["group"] == g.label).any()]


def _first(wanted: str, options: list[str]) -> str:
    return wanted if wanted in options else options[0]


def _heat(field: str, title: str) -> alt.Color:
    """1, no shift, is the dark end."""
    scale = alt.Scale(scheme=SCHEME, domainMin=1, type="log")
    legend = alt.Legend(title=title, gradientLength=120, tickCount=4, format="~g")
    return alt.Color(f"{field}:Q", scale=scale, legend=legend)


def strengths(study: Study) -> list[str]:
    """The layouts that were run at two strengths or more."""
    found: dict[str, set[str]] = {}
    for group in study.used:
        if group.noise.layout != NO_NOISE and group.noise.strength:
            found.setdefault(group.noise.layout, set()).add(group.noise.strength)
    return [layout for layout, of in found.items() if len(of) > 1]


def over_strengths(study: Study) -> Any:
    """Layer × rate, one layout at a time."""
    layouts = strengths(study)
    if study.depth.empty or not layouts:
        return None
    order = sorted(
        {g.noise.strength: g.noise.variance or 0.0 for g in study.used}.items(),
        key=lambda item: (item[1], natural(item[0])),
    )
    y, height = _layer_rows(study)
    return (
        source("depth")
        .transform_filter("datum.layout == layout")
        .mark_rect()
        .encode(
            x=alt.X("strength:O", sort=[name for name, _ in order], title="drop rate, β or σ",
                axis=alt.Axis(labelAngle=0)),
            y=y,
            color=_heat("ratio", "ratio"),
            tooltip=[
                LAYER,
                GROUP,
                alt.Tooltip("strength:N", title="rate, β or σ"),
                number("ratio", "shift ratio"),
                number("local", "local"),
                number("inherited", "inherited"),
                SEEDS,
            ],
        )
        .add_params(select("layout", "Layout", layouts, layouts[0]))
        .properties(height=height)
    )  # fmt: skip


_KINDS = {
    "train": "seen in training",
    "running": "remembered (running)",
    "eval": "met in eval mode",
}


def variances(study: Study) -> Any:
    """The three variances of one layer's input over epochs, in one config."""
    frame = study.epochs
    if frame.empty:
        return None
    groups = _labels(study, frame)
    layers = list(study.layers)
    names, legend = list(_KINDS.values()), alt.Legend(title=None, orient="top", columns=1)
    colours = alt.Scale(domain=names, range=["#0072B2", "#E69F00", "#D55E00"])
    colour = alt.Color("kind:N", scale=colours, legend=legend)
    shapes = alt.Scale(domain=names, range=list(SHAPES[:3]))
    shape = alt.Shape("kind:N", scale=shapes, legend=legend)
    base = (
        source("epochs")
        .transform_filter("datum.group == config && datum.layer == layer")
        .transform_fold(list(_KINDS), as_=["key", "variance"])
        .transform_filter("isValid(datum.variance)")
        .transform_calculate(kind=_words("datum.key", _KINDS))
    )
    x = epoch_axis(frame)
    y = alt.Y("variance:Q", title="variance, mean over channels")
    lines = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        tooltip=[
            LAYER,
            alt.Tooltip("kind:N", title="variance"),
            EPOCH,
            number("variance", "value", ".4g"),
        ],
    )
    return (
        alt.layer(lines, points)
        .add_params(
            select("config", "Config", groups, _first(_group_or_first(study), groups)),
            select("layer", "Layer", layers, _layer_or_first(study)),
        )
        .properties(height=300)
    )


def _words(field: str, words: dict[str, str]) -> str:
    """A Vega expression that puts words in the place of keys; both are ours."""
    last = list(words)[-1]
    tests = "".join(f"{field} == '{key}' ? '{words[key]}' : " for key in words if key != last)
    return f"{tests}'{words[last]}'"


def _group_or_first(study: Study) -> str:
    return study.used[0].label if study.depth.empty else most_shifted_group(study)


def _layer_or_first(study: Study) -> str:
    return next(iter(study.layers)) if study.depth.empty else most_shifted_layer(study)


def channels(study: Study) -> Any:
    """How a layer's channels differ: histogram of eval/running variance, a line a group."""
    frame = study.channels
    if frame.empty:
        return None
    layers = [layer for layer in study.layers if (frame["layer"] == layer).any()]
    colour = group_colour(study)
    base = source("channels").transform_filter(f"{VISIBLE} && datum.layer == layer")
    x = alt.X(
        "from:Q",
        title="eval variance / running variance of a channel",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format="~g", grid=False),
    )
    y = alt.Y("share:Q", title="share of channels", axis=alt.Axis(format="%"), stack=None)
    # Steps with a faint fill: filled bars of several groups hide each other.
    steps = base.mark_area(interpolate="step-after", opacity=0.12, line=False).encode(
        x=x, y=y, color=colour
    )
    outline = base.mark_line(interpolate="step-after", strokeWidth=1.8).encode(
        x=x, y=y, color=colour
    )
    bars = base.mark_rect(opacity=0.001).encode(
        x=x,
        x2="to:Q",
        y=y,
        y2=alt.Y2Datum(0),
        color=colour,
        tooltip=[
            LAYER,
            GROUP,
            number("from", "ratio from"),
            number("to", "to"),
            number("share", "share", ".1%"),
        ],
    )
    return (
        alt.layer(no_shift(x="x:Q"), steps, outline, bars)
        .add_params(
            hidden(), select("layer", "Layer", layers, _first(_layer_or_first(study), layers))
        )
        .properties(height=300)
    )


def modes(study: Study) -> Any:
    """Accuracy with noise on and off × BN statistics, one config and part of the data at a time."""
    frame = study.modes
    if frame.empty:
        return None
    groups = _labels(study, frame)
    parts = sorted({escape_control(part) for part in frame["data"]})  # test first
    names = list(dict.fromkeys(escape_control(name) for name in frame["statistics"]))
    base = source("modes").transform_filter("datum.group == config && datum.data == part")
    y = alt.Y("statistics:N", sort=names, title="BN statistics")
    x = alt.X("noise:N", sort=["off", "on"], title="noise", axis=alt.Axis(labelAngle=0))
    # The same colours for all configs, and on each a text that can be read.
    low, high = float(frame["value"].min()), float(frame["value"].max())
    scale = alt.Scale(scheme=SCHEME, domain=[low, high])
    middle = (low + high) / 2
    cells = base.mark_rect().encode(
        x=x,
        y=y,
        color=alt.Color("value:Q", scale=scale, title="accuracy %"),
        tooltip=[
            GROUP,
            alt.Tooltip("noise:N", title="noise"),
            alt.Tooltip("statistics:N", title="BN statistics"),
            number("value", "accuracy (%)", ".2f"),
            number("sd", "sd over seeds", ".2f"),
            SEEDS,
        ],
    )
    text = base.mark_text(fontSize=13).encode(
        x=x,
        y=y,
        text=alt.Text("value:Q", format=".1f"),
        color=alt.condition(f"datum.value > {middle!r}", alt.value("black"), alt.value("white")),
    )
    return (
        alt.layer(cells, text)
        .add_params(
            select("config", "Config", groups, _first(_group_or_first(study), groups)),
            select("part", "Images", parts, parts[0]),
        )
        .properties(height=max(160, 38 * len(names)))
    )
