"""An audit as one HTML file, in the style of the report on runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from vshift._version import __version__
from vshift.tables import Table, html_table, page_style
from vshift.text import escape_control, keep_together, pluralize

if TYPE_CHECKING:
    from vshift.auditing.report import Audit


def page(audit: Audit, title: str, scores: Table, layers: Table, made: Sequence[str]) -> str:
    """The whole page; everything inside, no scripts, nothing loaded from elsewhere.

    Args:
        made: from what and how, for the foot.
    """
    cards = []
    for finding in audit.findings:
        first, *others = finding.sentences
        at = f" at <code>{_text(finding.layer)}</code>" if finding.layer else ""
        cards.append(
            f'<article class="card {finding.severity}"><h3><span class="badge">{finding.severity}'
            f'</span> {finding.code}{at}</h3><p class="answer">{_text(first)}</p>'
            + "".join(f"<p>{_text(sentence)}</p>" for sentence in others)
            + "</article>"
        )

    def lines(table: Table) -> str:
        notes = filter(None, (column.note for column in table.columns))
        told = "".join(f'<p class="data">{_text(note)}</p>' for note in notes)
        return f'<div class="data">{told}</div>'

    notes = "".join(f"<li>{_text(note[:1].upper() + note[1:])}.</li>" for note in audit.notes)
    sections = {
        "Findings": "".join(cards),
        "Scores": scores.rows and _scrolled(scores, "Scores by mode") + lines(scores),
        "Layers": layers.rows and _scrolled(layers, "Batch norms") + lines(layers),
        "Notes": notes and f"<ul>{notes}</ul>",
    }
    body = "".join(
        f"<section><h2>{heading}</h2>{content}</section>"
        for heading, content in sections.items()
        if content
    )
    verdict = _text(audit.verdict or audit.count)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{page_style()}{_STYLE}</style></head><body><header><div><h1>{_text(title)}</h1>"
        f'<p class="facts">{verdict}</p></div></header><main>{body}</main>{_foot(audit, made)}'
        "</body></html>\n"
    )


def _foot(audit: Audit, made: Sequence[str]) -> str:
    """Data, samples, device, versions and command."""
    setup, lines = audit.setup, list(made)
    if setup:
        training = setup["train_samples"]
        more = "" if training is None else f", and {pluralize(training, 'training sample')}"
        lines += [
            f"{pluralize(setup['samples'], 'sample')} in batches of {setup['batch_size']}{more}, "
            f"on {setup['device']} with torch {setup['torch']}."
        ]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines.append(f"Written by vshift {__version__}, {written}. Nothing is loaded from elsewhere.")
    return f"<footer>{''.join(f'<p>{_text(line)}</p>' for line in lines)}</footer>"


def _scrolled(table: Table, label: str) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"{html_table(table.without_notes())}</div>"
    )


def _text(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    whole = keep_together(escape(escape_control(text)))
    return re.sub("`([^`]*)`", r"<code>\1</code>", whole)


_STYLE = """
code { white-space: normal; overflow-wrap: anywhere; background: var(--grid); padding: 0 3px; }
.card { border-left: 5px solid var(--line); margin-bottom: 14px; max-width: 80ch; }
.card.high { border-left-color: #d5322d; }
.card.medium { border-left-color: #d57800; }
.card.low { border-left-color: #b59a00; }
.card .badge { background: var(--paper); color: var(--ink); }
.data, li { max-width: 80ch; }
li { margin-bottom: 6px; }
.scroll { width: fit-content; max-width: 100%; }
table { width: auto; }
thead th { padding: 6px 7px; font-weight: 600; }
@media (max-width: 640px) { tbody th { white-space: normal; } }
"""
