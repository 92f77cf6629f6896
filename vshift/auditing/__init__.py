"""Diagnose train/eval discrepancies in arbitrary PyTorch models.

In reading order: `audit` (the entry), `samples` and `guard` (what goes in, what must stay as it
is), `trace` and `passes` (what is measured), `evidence` (all of it, with the distances),
`findings` (a class per finding), `repairs` and `severity` (what a repair gains), `report` (what
comes out). `probe` and `recalibrate` share the lower ones; `inputs`, `exported` and `command` are
for the command line.
"""

from vshift.auditing.audit import audit
from vshift.auditing.findings import Finding
from vshift.auditing.report import Audit
from vshift.auditing.samples import AuditError

__all__ = ["Audit", "AuditError", "Finding", "audit"]
