"""Variance-shift studies in PyTorch.

`audit`, `recalibrate` and `VarianceProbe` work on any PyTorch model; `load_runs` gives the runs in
a folder as pandas DataFrames. They are imported when first used, so that the command line starts
without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vshift._version import __version__ as __version__

if TYPE_CHECKING:
    from vshift.auditing.audit import audit
    from vshift.auditing.probe import VarianceProbe
    from vshift.auditing.recalibrate import recalibrate
    from vshift.auditing.samples import AuditError
    from vshift.runs.frames import load_runs

__all__ = ["AuditError", "VarianceProbe", "audit", "load_runs", "recalibrate"]

_LAZY = {
    "AuditError": "vshift.auditing.samples",
    "VarianceProbe": "vshift.auditing.probe",
    "audit": "vshift.auditing.audit",
    "load_runs": "vshift.runs.frames",
    "recalibrate": "vshift.auditing.recalibrate",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """What completion offers: what users need, and no module of the package."""
    return list(__all__)
