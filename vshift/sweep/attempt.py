"""One attempt at a run: the command that trains it, and what its end means."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path

from vshift.errors import RunError
from vshift.runs.holder import holder
from vshift.sweep.plan import Job
from vshift.sweep.state import State, see

STOPPED = (130, 143)


class Outcome(StrEnum):
    done = "done"
    diverged = "diverged"  # trying again would give the same
    refused = "refused"  # a mistake in the config, the data or the folder: the same
    elsewhere = "elsewhere"  # another process trains there
    stopped = "stopped"  # as it was asked to
    failed = "failed"  # may go better another time: memory, a disk, a machine


def train_command(config: Path, seed: int, runs_dir: Path) -> list[str]:
    """What trains one run, from a config file that nobody edits any more."""
    words = [sys.executable, "-m", "vshift", "train", str(config)]
    return [*words, "--seed", str(seed), "--runs-dir", str(runs_dir)]


def outcome(job: Job, runs_dir: Path, code: int, asked_to_stop: bool) -> Outcome:
    """What an exit code means, together with what the run folder says."""
    try:
        state = see(job, runs_dir).state
    except RunError:
        return Outcome.refused
    if state is State.done and code == 0:
        return Outcome.done
    if state is State.diverged:
        return Outcome.diverged
    if asked_to_stop and (code in STOPPED or code < 0):
        return Outcome.stopped
    if code == 2:
        return Outcome.elsewhere if holder(job.path(runs_dir)) else Outcome.refused
    return Outcome.failed
