"""A Slurm job: trains one run in its own process and requeues itself in time.

Slurm sends all processes of a job SIGUSR1 before its time limit (and before pre-emption, if the
site asks for it). The run then writes its checkpoint and exits, and submitit requeues the job. At a
plain SIGTERM (pre-emption with requeue, `scontrol requeue`, `scancel`) the run writes its
checkpoint too, and Slurm alone decides whether the job comes back.
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
from typing import Any

from vshift.config import Point, load
from vshift.errors import TrainingFailed
from vshift.runs import RunFolder, run_path
from vshift.sweep.logs import excerpt, log_path, open_log, trim
from vshift.sweep.plan import Job, train_command
from vshift.sweep.process_group import ProcessGroup
from vshift.sweep.slots import Slot, available_cores
from vshift.sweep.status import Outcome, outcome, unmark_queued

TICK = 0.2  # seconds between two looks at the process
LOOK = 60.0  # seconds between two looks at the log's size
PATIENCE = 60.0  # seconds for the last step and its checkpoint
MOST_IDLE = 3  # time limits in a row without a new checkpoint after which a job gives up


@dataclass
class SlurmTask:
    """One run as it travels to the node, with the whole config, so that edits do not matter.

    Args:
        config: as YAML, for all its seeds.
        runs_dir: absolute, on a file system that the nodes share.
        retries: of a run that failed, within the job.
        idle: time limits in a row that brought no new checkpoint.
    """

    name: str
    seed: int
    config: str
    runs_dir: str
    retries: int = 1
    idle: int = 0

    def __call__(self) -> str:
        """Train, and return how it ended.

        Raises:
            TrainingFailed: so that Slurm shows the job of a failed run as failed.
        """
        self._work = _Work(self)
        return str(self._work.run())

    def checkpoint(self) -> Any:
        """Called by submitit at SIGUSR1; it requeues the job with what this returns."""
        from submitit.helpers import DelayedSubmission

        work: _Work | None = getattr(self, "_work", None)
        idle = 0 if work is not None and work.stop() else self.idle + 1
        if idle < MOST_IDLE or work is None:
            return DelayedSubmission(replace(self, idle=idle))
        unmark_queued(work.folder.path)
        with open_log(work.log, "given up") as log:
            text = (
                f"error: {idle} time limits in a row ended without a checkpoint; ask for more time"
            )
            log.write(f"{text}\n".encode())
        return None


class _Work:
    """The run's process, and the signals that reach this one."""

    def __init__(self, task: SlurmTask) -> None:
        self.task = task
        self.runs_dir = Path(task.runs_dir)
        self.folder = RunFolder(run_path(self.runs_dir, task.name, task.seed))
        self.log = log_path(self.folder.path)
        self.processes = ProcessGroup()
        self.process: subprocess.Popen[bytes] | None = None
        self.stop_requested = False
        self.first_checkpoint = self._checkpoint_stamp()

    def run(self) -> Outcome:
        signal.signal(signal.SIGTERM, self._terminate)  # submitit's own handler ignores it
        with tempfile.TemporaryDirectory(prefix="vshift-") as folder:
            config = Path(folder) / f"{self.task.name}.yaml"
            config.write_text(self.task.config, encoding="utf-8")
            job = Job(config, Point(self.task.name, load(config), {}), self.task.seed)
            for attempt in range(1, self.task.retries + 2):
                code = self._train(config, attempt)
                end = outcome(job, self.runs_dir, code, self.stop_requested)
                if end is not Outcome.failed:
                    break
        if end is not Outcome.stopped:
            unmark_queued(self.folder.path)
        if end in (Outcome.failed, Outcome.refused, Outcome.diverged):
            raise TrainingFailed(f"{job.label}: {end}; {self.log}:\n{excerpt(self.log)}")
        return end

    def _train(self, config: Path, attempt: int) -> int:
        """One attempt; its exit code."""
        environment = Slot(None, job_threads(os.environ)).environment(os.environ)
        title = f"attempt {attempt}, Slurm job {job_id(os.environ)} on {os.uname().nodename}"
        words = train_command(config, self.task.seed, self.runs_dir)
        with open_log(self.log, title) as log:
            self.process = self.processes.start(words, environment, stdout=log, stderr=log)
            assert self.process is not None  # this group catches no signals
            looked = time.monotonic()
            while (code := self.process.poll()) is None:
                time.sleep(TICK)
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    trim(self.log)
        return code

    def stop(self) -> bool:
        """Let the run write its checkpoint and exit; whether there is a new checkpoint.

        This runs inside a signal handler, perhaps while Popen holds its lock, so the process is
        waited for without Popen.
        """
        self._terminate()
        deadline = time.monotonic() + PATIENCE
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(TICK)
        return self._checkpoint_stamp() != self.first_checkpoint

    def _has_ended(self) -> bool:
        if self.process is None or self.process.returncode is not None:
            return True
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.process.pid, flags) is not None
        except ChildProcessError:
            return True

    def _terminate(self, *_: object) -> None:
        self.stop_requested = True
        self.processes.terminate()

    def _checkpoint_stamp(self) -> tuple[int, int] | None:
        """A value that changes with every checkpoint."""
        try:
            status = self.folder.checkpoints()[0].stat()
        except (OSError, IndexError):
            return None
        return status.st_mtime_ns, status.st_ino


def job_threads(environment: Mapping[str, str]) -> int:
    """Cores that Slurm gave this job; its node may not confine jobs to their own."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(name, "").isdecimal():
            return max(1, min(int(environment[name]), available_cores()))
    return available_cores()


def job_id(environment: Mapping[str, str]) -> str:
    """`12_3` in an array, else `12`."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}"
    return environment.get("SLURM_JOB_ID", "?")
