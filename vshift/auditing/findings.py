"""What an audit says: findings, each with the layer, the number, the causes and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vshift.auditing.repairs import Repair
from vshift.auditing.scores import SEVERITIES, Gain
from vshift.auditing.words import WORDS


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: a key of `vshift.auditing.words.WORDS`.
        layer: the culprit, None where it is no layer's fault.
        severity: info, low, medium or high: what the repair measurably gave back.
        message: what was found, usual causes, what to do, what the repair gave back.
        evidence: numbers; `layers` lists every layer concerned, `inherits` those that only inherit,
            `repair` is a `Gain`.
    """

    code: str
    layer: str | None
    severity: str
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "layer": self.layer,
            "severity": self.severity,
            "message": self.message,
            "evidence": self.evidence,
        }

    @property
    def title(self) -> str:
        return WORDS[self.code].title


@dataclass
class Draft:
    """A finding before its severity is measured.

    Attributes:
        what: what was found, with the number, in one or two sentences.
        repair: tried in order, on top of earlier drafts' repairs; None where nothing can be tried.
        minor: to be left out if its repair gives nothing back; a text then becomes a note.
        severity: instead of the measured one, where there is no repair.
    """

    code: str
    layer: str | None
    what: str
    layers: Sequence[str] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    repair: Repair | None = None
    minor: bool | str = False
    severity: str = "info"


def settled(draft: Draft, measured: Gain | None) -> Finding:
    """The finding, with what its repair gave back."""
    words = WORDS[draft.code]
    parts = [draft.what, f"Usual causes: {words.causes}.", f"What to do: {words.advice}."]
    evidence = dict(draft.evidence)
    if draft.layers:
        evidence["layers"] = list(draft.layers)
    severity = draft.severity
    if measured is not None:
        parts.append(_gave_back(measured))
        evidence["repair"] = measured.to_dict()
        severity = measured.severity
    return Finding(draft.code, draft.layer, severity, " ".join(parts), evidence)


def _gave_back(measured: Gain) -> str:
    text = f"Tried: {measured.in_words()}"
    if measured.severity != "info":
        return f"{text}."
    labelled = measured.loss_before is not None and measured.loss_after is not None
    return f"{text}: {'no measurable gain' if labelled else 'next to nothing'}."


def reaches(severity: str, at: str) -> bool:
    """Whether a severity is `at` or worse."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(at)


def by_harm(findings: Sequence[Finding]) -> list[Finding]:
    """The most harmful first; equal ones in the order given."""
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), -_size(f)))


def _size(finding: Finding) -> float:
    repair = finding.evidence.get("repair")
    if not repair:
        return 0.0
    if not repair["finite_before"]:
        return float("inf")
    if repair["loss_before"] is None or repair["loss_after"] is None:
        return float(repair["output_change"])
    return float(repair["loss_before"] - repair["loss_after"])


def listed(names: Sequence[str], shown: int = 4) -> str:
    """Names for a sentence."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(name or "the model" for name in names[:shown]) + more
