"""Why a model is fine in train() and bad in eval(), for models that nobody here wrote."""

from vshift.auditing.audit import audit
from vshift.auditing.findings import Finding
from vshift.auditing.result import Audit
from vshift.auditing.samples import AuditError

__all__ = ["Audit", "AuditError", "Finding", "audit"]
