"""An audit as one small HTML file: no script, nothing loaded from anywhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from vshift.text import escape_control

if TYPE_CHECKING:
    from vshift.auditing.result import Audit

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left }
article { border-left: .4rem solid #999; margin: 1rem 0; padding: .1rem 1rem }
article.high { border-color: #b00020 } article.medium { border-color: #c25e00 }
article.low { border-color: #9a7d00 } code { background: #8882; padding: 0 .2rem }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } }
"""
_COLUMNS = (
    "layer", "role", "channels", "noise", "train_variance", "noise_off_variance",
    "running_variance", "eval_variance", "shift_ratio", "local_ratio", "inherited_ratio",
)  # fmt: skip


def as_page(audit: Audit, title: str) -> str:
    """The whole report, every text escaped."""
    heading = f"Audit of {_text(title)}"
    findings = "".join(_finding(f) for f in audit.findings) or "<p>No findings.</p>"
    scores = _table(
        ("mode", "loss", "accuracy"), [{"mode": k, **v} for k, v in audit.scores.items()]
    )
    notes = "".join(f"<li>{_text(note)}</li>" for note in audit.notes)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{heading}</h1>{findings}"
        f"<h2>Scores</h2>{scores}<h2>Layers</h2>{_table(_COLUMNS, audit.layers)}"
        f"<h2>Notes</h2><ul>{notes}</ul></body></html>\n"
    )


def _finding(finding: Any) -> str:
    where = f" at <code>{_text(finding.layer)}</code>" if finding.layer else ""
    return (
        f'<article class="{_text(finding.severity)}"><h3>{_text(finding.title)}{where}</h3>'
        f"<p><code>{_text(finding.code)}</code>, severity {_text(finding.severity)}</p>"
        f"<p>{_text(finding.message)}</p></article>"
    )


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{_text(c.replace('_', ' '))}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _text(", ".join(value) if isinstance(value, list) else value)


def _text(value: Any) -> str:
    return escape(escape_control(str(value)))
