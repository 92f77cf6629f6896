"""A study → one HTML file: everything inside, nothing loaded from elsewhere.

Every name on the page comes from a file that anybody may have written. Jinja escapes what goes
into HTML, `_for_script` escapes what goes into JSON, and the page's policy allows no script but its
own two, no request and no frame.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vshift._version import __version__
from vshift.cache import cache_folder, keep
from vshift.report import answers, effects, layouts, tables
from vshift.report.figures import FIGURES, frames, specs
from vshift.report.layouts import StudyGroup, grouped
from vshift.report.sentences import bold, join_html, say
from vshift.report.study import Study
from vshift.tables import page_style
from vshift.text import escape_control, join_words, pluralize, to_jsonable

_DIGITS = 4  # significant: more than any figure shows
_CROWD, _SHOWN = 24, 12  # more configs than the first begin with the second number shown


def render(study: Study, title: str, vega: str, command: str = "") -> str:
    """The whole page as text, with the text of `vega_script` in it."""
    style, script = page_style() + _asset("style.css"), _asset("script.js")
    hidden = at_first_hidden(study)
    drawn = specs(study)
    data = {figure.data for figure in FIGURES if figure.id in drawn}
    content = {
        "groups": [{"label": g.label, "mark": _mark_id(g)} for g in study.used],
        "hidden": hidden,
        "specs": drawn,
        "data": {name: pack(frame) for name, frame in frames(study).items() if name in data},
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True)  # fmt: skip
    template = environment.from_string(_asset("page.html"))
    template.globals.update(mark=mark, pluralize=pluralize)
    return template.render(
        title=title,
        command=command,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        policy=_policy(vega, script),
        style=Markup(style),
        script=Markup(script),
        vega=Markup(vega),
        study=Markup(_for_script(content)),
        marks=Markup("").join(mark(group) for group in study.used),
        facts=facts(study),
        data=" and ".join(data_names(study)),
        cards=answers.cards(study),
        data_sentences=data_sentences(study),
        left_out=left_out(study),
        notes=[*study.comparison.notes, *effects.unpaired(study), *study.problems],
        configs=tables.configs_table(study),
        runs=tables.runs_table(study),
        layers=tables.layers_table(study),
        differences=tables.differences_table(study),
        figures=[figure for figure in FIGURES if figure.id in drawn],
        missing=[figure for figure in FIGURES if figure.id not in drawn],
        layouts=layouts.layouts(study.groups),
        shared=layouts.shared(study.groups),
        terms=layouts.terms(study.groups, measured=not study.depth.empty),
        layer_note=layer_note(study),
        same_note=same_note(study),
        prefix_note=_prefix_note(study),
        crowd=len(hidden),
    )


def _policy(*scripts: str) -> str:
    """A Content-Security-Policy that allows these scripts by their hashes, and no connection."""
    hashes = (hashlib.sha256(text.encode()).digest() for text in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(value).decode()}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


# ---- what the numbers rest on

_DATA = {
    "shapes": "shapes (drawn by vshift)",
    "patterns": "patterns (drawn by vshift)",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
_STATUS = {
    "running": "not finished (running, or killed)",
    "interrupted": "interrupted",
    "failed": "failed",
    "diverged": "diverged (the loss became NaN or infinite)",
    "damaged": "damaged",
    "done": "done, but not counted",
}


def data_names(study: Study) -> list[str]:
    """The data sets of all configs, as they may be called in a paper; a folder's as such."""
    names: dict[str, None] = {}
    for section in _data_sections(study):
        name = section.get("name")
        if name == "imagefolder":
            folder = escape_control(PurePath(str(section.get("root", ""))).name)
            names[f"images in the folder “{folder}”, no published data set"] = None
        elif name and isinstance(name, str):
            names[_DATA.get(name, escape_control(name))] = None
    return list(names)


def _data_sections(study: Study) -> list[dict[str, object]]:
    sections = (group.config.get("data") for group in study.groups)
    return [section for section in sections if isinstance(section, dict)]


def data_sentences(study: Study) -> list[Markup]:
    """How much of which data, and what its numbers must not be compared with."""
    sections = _data_sections(study)
    kinds = {str(section.get("name")) for section in sections}
    limits: set[Markup] = set()
    for section in sections:
        is_drawn = section.get("name") in ("shapes", "patterns")  # as many as are asked for
        start, suffix = ("", "") if is_drawn else ("Limited to ", "_limit")
        counts = {"training": section.get(f"train{suffix}"), "test": section.get(f"test{suffix}")}
        images = [f"{n:,} {part} images" for part, n in counts.items() if isinstance(n, int)]
        limits |= {say("{}{}.", start, join_html(images))} if images else set()
    names = data_names(study)
    text = [say("Data: {}.", join_html(map(bold, names)))] if names else []
    text += sorted(limits)
    if "imagefolder" in kinds:
        text.append(
            Markup(
                "If a folder’s images are a published set’s, re-compressed or resized, the errors "
                "are not comparable with those published for it."
            )
        )
    if kinds & {"cifar10", "cifar100"} and limits:
        text.append(Markup("A part of a data set: not comparable with published numbers."))
    if len(names) > 1:
        text.append(Markup("Configs on different data are not compared with each other."))
    return text


def left_out(study: Study) -> list[Markup]:
    """The runs that no number here rests on, counted and named, by status."""
    by_status = grouped(
        (run.status, f"{group.label} seed {run.seed}")
        for group in study.groups
        for run in group.others
    )
    return [
        say("{} {}: {}.", len(names), _STATUS.get(status, status), join_html(names, len(names)))
        for status, names in by_status.items()
    ]


def facts(study: Study) -> str:
    """`12 runs of 4 configs, 2 more not counted`."""
    used = sum(len(group.runs) for group in study.groups)
    others = sum(len(group.others) for group in study.groups)
    text = f"{pluralize(used, 'run')} of {pluralize(len(study.groups), 'config')}"
    return text + (f", {others} more not counted" if others else "")


# ---- notes and parts of the page


def at_first_hidden(study: Study) -> list[str]:
    """The labels that figures of very many configs begin without, or nobody could read them."""
    labels = [group.label for group in tables.by_shift(study)]
    return labels[_SHOWN:] if len(labels) > _CROWD else []


def layer_note(study: Study) -> str:
    """How axes shorten layers' names, by an example; empty where they do not."""
    for name, short in study.layers.items():
        if short != escape_control(name):
            return (
                f"On axes and in the table of configs, layers have short names: {short} is "
                f"{escape_control(name)}."
            )
    return ""


def same_note(study: Study) -> str:
    """Which configs' marks cover each other, as they are the same trainings."""
    return " ".join(
        f"{join_words(labels)} are the same trainings: their marks cover each other."
        for labels in effects.same_trainings(study.used)
    )


def _prefix_note(study: Study) -> str:
    """Which beginning the labels leave out."""
    for group in study.groups:
        name = str(group.row["label"])
        if name != group.label and name.endswith(group.label):
            return f"Names are without “{name.removesuffix(group.label)}”."
    return ""


def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed in one text.

    vl-convert bundles them, which takes four seconds; the cache folder keeps the text, by
    vl-convert's version. Without a cache that can be written they are bundled each time.
    """
    import vl_convert

    path = cache_folder() / f"vega-{metadata.version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # all of it
    keep(path, bundle)
    return bundle


def _asset(name: str) -> str:
    return (resources.files("vshift.report") / "assets" / name).read_text("utf-8")


def _for_script(value: Any) -> str:
    """JSON without characters that could end a script element or start a comment."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame as columns: each word once in a list with a code per row, numbers rounded."""
    columns: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            rounded = [
                float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in column
            ]
            columns[str(name)] = {
                "values": [int(x) if x is not None and x.is_integer() else x for x in rounded]
            }
        else:
            codes, uniques = pd.factorize(column.astype(object))
            texts = [to_jsonable(value) for value in uniques]
            columns[str(name)] = {"words": texts, "codes": codes.tolist()}
    return {"size": len(frame), "columns": columns}


_SHAPES = {
    "circle": '<circle cx="6" cy="6" r="5"/>',
    "square": '<rect x="1.5" y="1.5" width="9" height="9"/>',
    "triangle-up": '<path d="M6 1 11.4 10.6H.6z"/>',
    "triangle-down": '<path d="M6 11 .6 1.4h10.8z"/>',
    "diamond": '<path d="M6 0 11 6 6 12 1 6z"/>',
    "cross": '<path d="M4 .8h4V4h3.2v4H8v3.2H4V8H.8V4H4z"/>',
}


def _mark_id(group: StudyGroup) -> str:
    return f"{group.shape}-{group.colour.lstrip('#')}"


def mark(group: StudyGroup) -> Markup:
    """The group's symbol, as in the figures."""
    return Markup(
        '<svg class="mark" viewBox="0 0 12 12" aria-hidden="true" fill="{}" data-mark="{}">'
    ).format(group.colour, _mark_id(group)) + Markup(_SHAPES[group.shape] + "</svg>")
