"""An audit as text: for a terminal and as Markdown."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from vshift.text import escape_lines, pluralize

if TYPE_CHECKING:
    from vshift.auditing.result import Audit

SHOWN = 60  # layers in a table for people; JSON has them all


def as_text(audit: Audit, width: int = 100) -> str:
    """Findings in plain words, then scores and one line for each BN layer."""
    parts = [_count(audit)]
    for number, finding in enumerate(audit.findings, 1):
        where = f" at {finding.layer}" if finding.layer else ""
        parts.append(f"{number}. [{finding.severity}] {finding.code}{where}: {finding.title}")
        parts.append(textwrap.fill(finding.message, width, initial_indent="   ",
                                   subsequent_indent="   "))  # fmt: skip
    parts += ["", *_aligned(_scores(audit)), "", *_aligned(_layers(audit)), *_more(audit)]
    parts += [textwrap.fill(f"Note: {note}.", width) for note in audit.notes]
    return escape_lines("\n".join(parts))


def as_markdown(audit: Audit) -> str:
    """The same for a document."""
    parts = [_count(audit), ""]
    for finding in audit.findings:
        where = f" at `{finding.layer}`" if finding.layer else ""
        parts += [f"### {finding.title.capitalize()}{where}", ""]
        parts += [
            f"`{finding.code}`, severity **{finding.severity}**. {_escape(finding.message)}",
            "",
        ]
    parts += [*_piped(_scores(audit)), "", *_piped(_layers(audit)), *_more(audit), ""]
    parts += [f"- {_escape(note)}" for note in audit.notes]
    return escape_lines("\n".join(parts))


def _count(audit: Audit) -> str:
    if not audit.findings:
        return "No findings."
    count = len(audit.findings)
    return f"{pluralize(count, 'finding')}, the most harmful first"


def _scores(audit: Audit) -> list[list[str]]:
    rows = [
        [name, _number(score["loss"], ".4f"), _number(score["accuracy"], ".2f")]
        for name, score in audit.scores.items()
    ]
    return [["mode", "loss", "accuracy %"], *rows]


def _layers(audit: Audit) -> list[list[str]]:
    head = ["layer", "role", "train var", "running var", "eval var", "shift", "local", "inherited"]
    keys = ["train_variance", "running_variance", "eval_variance"]
    ratios = ["shift_ratio", "local_ratio", "inherited_ratio"]
    return [
        head,
        *(
            [row["layer"] or "(the model)", row["role"]]
            + [_number(row[key], ".4g") for key in keys]
            + [_number(row[key], ".3f") for key in ratios]
            for row in audit.layers[:SHOWN]
        ),
    ]


def _more(audit: Audit) -> list[str]:
    left = len(audit.layers) - SHOWN
    return [f"… and {left} more layers (--format json has all)"] if left > 0 else []


def _number(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def _aligned(rows: list[list[str]]) -> list[str]:
    if len(rows) == 1:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{w}}" if i < 1 else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _piped(rows: list[list[str]]) -> list[str]:
    if len(rows) == 1:
        return []
    lines = ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " :-- |" + " --: |" * (len(rows[0]) - 1), *lines[1:]]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
