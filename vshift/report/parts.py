"""What all charts are made of: colours, axes, tooltips, drop-downs, and the frame around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import pandas as pd

from vshift.report.data import Study
from vshift.report.groups import PALETTE

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
        "labelFlush": False,
    },
    "legend": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "labelColor": INK, "titleColor": INK, "symbolLimit": 0, "symbolOpacity": 1,
        "labelLimit": 220},
    "range": {"category": list(PALETTE)},
}  # fmt: skip

AS_TRAINED = "as trained"  # what recalibration.json calls `none`
VISIBLE = "indexof(hidden, datum.group) < 0"
LAYER = alt.Tooltip("layer:N", title="layer")
GROUP = alt.Tooltip("group:N", title="config")
SEED = alt.Tooltip("seed:Q", title="seed")
EPOCH = alt.Tooltip("epoch:Q", title="epoch")
SEEDS = alt.Tooltip("n:Q", title="n (seeds)")


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


def no_shift(**at: Any) -> Any:
    """A dashed line where a ratio is 1, of a layered chart: `no_shift(y="y:Q")`."""
    (axis,) = at
    rule = alt.Chart(alt.InlineData(values=[{axis: 1}])).mark_rule(color=MIDDLE, strokeDash=[4, 3])
    return rule.encode(**at)


def epoch_axis(frame: pd.DataFrame) -> alt.X:
    """Ticks at whole epochs: at each one where there are few."""
    epochs = sorted(int(epoch) for epoch in frame["epoch"].dropna().unique())
    if len(epochs) <= 12:
        return alt.X("epoch:Q", axis=alt.Axis(grid=False, format="d", values=epochs))
    return alt.X("epoch:Q", axis=alt.Axis(grid=False, format="d"))


def score_title(study: Study) -> str:
    return "test error (%)" if study.score == "test_error" else "test loss"
