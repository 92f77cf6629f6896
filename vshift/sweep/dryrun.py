"""`vshift sweep --dry-run`: the runs, what would be done with each, and how long it may take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vshift.sweep.estimate import Pace, in_words, side_by_side
from vshift.sweep.plan import Job
from vshift.sweep.state import Seen, State, last_epoch, see_all


def describe(jobs: Sequence[Job], runs_dir: Path, places: int, fresh: bool) -> tuple[str, str, str]:
    """(one line a run, the same as JSON, what they cost together). Nothing is written."""
    pace = Pace()
    pace.learn_from(jobs, runs_dir)
    pace.learn_from_others(jobs, runs_dir)
    rows = [
        _row(job, found, runs_dir, pace, fresh)
        for job, found in zip(jobs, see_all(list(jobs), runs_dir), strict=True)
    ]
    return "\n".join(map(_line, rows)), json.dumps(rows, indent=1), _total(rows, places)


def _row(job: Job, found: Seen, runs_dir: Path, pace: Pace, fresh: bool) -> dict[str, Any]:
    path = job.path(runs_dir)
    state = State.new if fresh and found.state is not State.running else found.state
    seconds = None if state.settled else pace.seconds(job.config)
    if seconds is not None and state in (State.resume, State.running, State.failed, State.queued):
        done = last_epoch(path).get("epoch", 0)
        seconds *= 1 - min(done, job.config.epochs) / job.config.epochs
    return {
        "name": job.config.name,
        "seed": job.seed,
        "path": str(path),
        "state": str(state),
        "by": found.by,
        "epochs": job.config.epochs,
        "seconds_left": 0.0 if state.settled else seconds,
    }


def _line(row: dict[str, Any]) -> str:
    text = f"{row['path']}: {row['state']}"
    if row["by"]:
        text += f" ({row['by']})"
    if row["seconds_left"]:
        text += f", about {in_words(row['seconds_left'])}"
    return text


def _total(rows: Sequence[dict[str, Any]], places: int) -> str:
    left = [row for row in rows if row["state"] not in (State.done, State.diverged)]
    text = f"{len(rows)} runs, {len(left)} to do"
    if not left:
        return text
    known = [row["seconds_left"] for row in left if row["seconds_left"] is not None]
    if len(known) < len(left):
        unknown = len(left) - len(known)
        return (
            f"{text}; how long {unknown} of them take cannot be known: no finished run in this "
            "--runs-dir has their data, network and hardware"
        )
    return (
        f"{text}: about {in_words(sum(known))} one after the other, "
        f"{in_words(side_by_side([], known, places))} with {places} at a time"
    )
