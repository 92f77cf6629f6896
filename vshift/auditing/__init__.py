"""Diagnose train/eval discrepancies in arbitrary PyTorch models."""

from vshift.auditing.audit import audit
from vshift.auditing.findings import Finding
from vshift.auditing.report import Audit
from vshift.auditing.samples import AuditError

__all__ = ["Audit", "AuditError", "Finding", "audit"]
