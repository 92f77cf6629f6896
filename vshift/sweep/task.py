"""What a Slurm job does: train one run in a process of its own, and hand the job on in time.

Slurm warns all processes of a job with SIGUSR1 before its time limit (and, where the site asks for
it, before pre-emption). The run then writes its checkpoint and ends, and submitit puts the job back
into the queue. At a plain SIGTERM (pre-emption with requeue, `scontrol requeue`, `scancel`) the run
writes its checkpoint too, and Slurm alone decides whether the job comes back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from vshift.config import Point, load
from vshift.errors import TrainingFailed
from vshift.runs import RunFolder
from vshift.sweep.attempt import Outcome, outcome, train_command
from vshift.sweep.children import Children
from vshift.sweep.logs import excerpt, log_path, open_log, trim
from vshift.sweep.places import Place, cores
from vshift.sweep.plan import Job
from vshift.sweep.queue import unmark

TICK = 0.2  # seconds between two looks at the process
LOOK = 60.0  # seconds between two looks at the log's size
PATIENCE = 60.0  # seconds for the last step and its checkpoint
MOST_IDLE = 3  # time limits in a row without a new checkpoint after which a job gives up


@dataclass
class Task:
    """One run, as it travels to the node: the whole config, which nobody edits on the way.

    Args:
        config: as YAML, for all its seeds.
        runs_dir: absolute, on a file system that the nodes share.
        retries: of a run that failed, within the job.
        idle: how many time limits in a row brought no new checkpoint.
    """

    name: str
    seed: int
    config: str
    runs_dir: str
    retries: int = 1
    idle: int = 0

    def __call__(self) -> str:
        """Train, and say how it ended; a run that failed makes the job fail.

        Raises:
            TrainingFailed: for Slurm, and for who looks at the job's output.
        """
        self._work = _Work(self)
        return str(self._work.run())

    def checkpoint(self) -> Any:
        """submitit calls this at SIGUSR1, and requeues the job with what it returns."""
        from submitit.helpers import DelayedSubmission

        work: _Work | None = getattr(self, "_work", None)
        idle = 0 if work is not None and work.stop() else self.idle + 1
        if idle < MOST_IDLE or work is None:
            return DelayedSubmission(replace(self, idle=idle))
        work.give_up(f"{idle} time limits in a row ended without a checkpoint; ask for more time")
        return None


class _Work:
    """The run's process, and the signals that reach this one."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.runs_dir = Path(task.runs_dir)
        self.folder = RunFolder(self.runs_dir / task.name / f"seed-{task.seed}")
        self.log = log_path(self.folder.path)
        self.children = Children()
        self.process: subprocess.Popen[bytes] | None = None
        self.asked_to_stop = False
        self.before = self._stamp()

    def run(self) -> Outcome:
        signal.signal(signal.SIGTERM, self._terminated)  # submitit's own handler ignores it
        with tempfile.TemporaryDirectory(prefix="vshift-") as here:
            config = Path(here) / f"{self.task.name}.yaml"
            config.write_text(self.task.config, encoding="utf-8")
            job = Job(config, Point(self.task.name, load(config), {}), self.task.seed)
            for attempt in range(1, self.task.retries + 2):
                code = self._train(config, attempt)
                found = outcome(job, self.runs_dir, code, self.asked_to_stop)
                if found is not Outcome.failed:
                    break
        if found is not Outcome.stopped:
            unmark(self.folder.path)
        if found in (Outcome.failed, Outcome.refused, Outcome.diverged):
            raise TrainingFailed(f"{job.label}: {found}; {self.log}:\n{excerpt(self.log)}")
        return found

    def _train(self, config: Path, attempt: int) -> int:
        """One attempt; its exit code."""
        environment = Place(None, threads(os.environ)).environment(os.environ)
        where = f"Slurm job {job_id(os.environ)} on {os.uname().nodename}"
        words = train_command(config, self.task.seed, self.runs_dir)
        with open_log(self.log, f"attempt {attempt}, {where}") as log:
            self.process = self.children.start(words, environment, stdout=log, stderr=log)
            assert self.process is not None  # nobody told `children` to stop
            looked = time.monotonic()
            while (code := self.process.poll()) is None:
                time.sleep(TICK)
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    trim(self.log)
        return code

    def stop(self) -> bool:
        """Let the run write its checkpoint and end; whether it came further than it was.

        This runs inside a signal handler, perhaps while Popen holds its lock: the process is asked
        for behind Popen's back.
        """
        self.asked_to_stop = True
        self.children.end_all()
        deadline = time.monotonic() + PATIENCE
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(TICK)
        return self._stamp() != self.before

    def _has_ended(self) -> bool:
        if self.process is None or self.process.returncode is not None:
            return True
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.process.pid, flags) is not None
        except ChildProcessError:
            return True

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        self.children.end_all()

    def give_up(self, reason: str) -> None:
        unmark(self.folder.path)
        with open_log(self.log, "given up") as log:
            log.write(f"error: {reason}\n".encode())

    def _stamp(self) -> tuple[int, int] | None:
        """What changes with every checkpoint."""
        try:
            status = self.folder.checkpoints()[0].stat()
        except (OSError, IndexError):
            return None
        return status.st_mtime_ns, status.st_ino


def threads(environment: Mapping[str, str]) -> int:
    """Cores that Slurm gave this job; its node may not keep jobs to their own."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(name, "").isdecimal():
            return max(1, min(int(environment[name]), cores()))
    return cores()


def job_id(environment: Mapping[str, str]) -> str:
    """`12_3` in an array, else `12`."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}"
    return environment.get("SLURM_JOB_ID", "?")
