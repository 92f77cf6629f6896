"""Which runs wait for a Slurm job: a small file beside each run folder, and squeue as a hint.

`<runs-dir>/<name>/seed-<n>.queued.json` names the job that is responsible for the run. It is
written when the job is submitted and removed by the job when the run is done or has failed for
good; it stays while a job that was stopped waits to go on. So it is there as long as nobody else
has anything to do, and the scheduler need not be asked.

It outlives its job in one case: the job ended without a chance to clean up (scancel, a node that is
gone for good). squeue, where it answers, tells such a file from one whose job is still there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vshift.errors import RunError
from vshift.runs import files, now
from vshift.sweep.plan import Job
from vshift.text import escape_control

ANSWER = 30.0  # seconds that squeue gets


def marker(path: Path) -> Path:
    """The file beside a run folder."""
    return path.with_name(f"{path.name}.queued.json")


def mark(job: Job, runs_dir: Path, slurm_job: str) -> None:
    """Say that a Slurm job is responsible for a run; RunError where that cannot be written."""
    path = marker(job.path(runs_dir))
    with files.explained(path.parent, "make the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"job": slurm_job, "submitted": now()})


def unmark(path: Path) -> None:
    """Say that no Slurm job is responsible for the run in a folder any more."""
    with suppress(OSError):
        marker(path).unlink(missing_ok=True)


def queued(job: Job, runs_dir: Path) -> str | None:
    """The Slurm job that a run waits for, as its marker says."""
    try:
        found = files.read_json(marker(job.path(runs_dir))) or {}
    except RunError:
        return None  # unreadable: the run may be submitted again, which does no harm
    name = found.get("job")
    return escape_control(name[:40]) if isinstance(name, str) and name else None


def still_there(slurm_jobs: Iterable[str]) -> set[str] | None:
    """Those of some jobs that Slurm still knows as waiting or running; None if it cannot be asked.

    It asks the controller's memory, so there need be no accounting.
    """
    arrays = sorted({name.partition("_")[0] for name in slurm_jobs})
    if not arrays:
        return set()
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        return None
    return set(answer.stdout.split())
