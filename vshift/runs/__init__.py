"""The run folder on disk: the only place that writes it. Importing this does not import torch."""

from vshift.runs.folder import FILES, PROBE, RunFolder, now
from vshift.runs.prepare import (
    Action,
    discard,
    git_commit,
    next_action,
    prepare,
    run_path,
    versions,
)
from vshift.runs.read import RunRecord, find_runs, number, read_run
from vshift.text import natural

__all__ = [
    "FILES",
    "PROBE",
    "Action",
    "RunFolder",
    "RunRecord",
    "discard",
    "find_runs",
    "git_commit",
    "natural",
    "next_action",
    "now",
    "number",
    "prepare",
    "read_run",
    "run_path",
    "versions",
]
