"""What is asked of Slurm: a sweep's options as submitit and `sbatch` take them."""

from __future__ import annotations

import math
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from vshift.errors import VShiftError
from vshift.text import escape_control

FOLDER = ".slurm"  # in the runs dir: submitit's scripts, pickles and outputs
WARNING = 120  # seconds before its time limit that a run is told; Slurm may say it a minute earlier
LARGEST_ARRAY = 1000  # tasks, where Slurm does not say
GRACE = 60.0  # seconds for a shared file system to show what a job wrote before it ended
ANSWER = 30.0  # seconds that scontrol gets
_TIME = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,6})(?::([0-9]{1,6}))?(?::([0-9]{1,6}))?")
_IN_LOGS = f"a run's messages are in its log, submitit's in {FOLDER}"
_OURS = {
    "array": "--jobs sets how many run at a time",
    "output": _IN_LOGS,
    "error": _IN_LOGS,
    "open_mode": _IN_LOGS,
    "signal": "the warning before the time limit is what makes a run write its checkpoint",
    "requeue": "jobs are always put back into the queue",
    "no_requeue": "jobs are always put back into the queue",
    "wrap": "--setup adds lines to the script",
    "time": "give --time",
    "partition": "give --partition",
    "account": "give --account",
    "cpus_per_task": "give --cpus",
    "gpus_per_node": "give --gpus",
    "mem": "give --mem",
    "constraint": "give --constraint",
}


@dataclass(frozen=True)
class Slurm:
    """What every job asks for, and how the sweep goes about it.

    Args:
        jobs: the throttle, tasks of an array at a time.
        minutes: a job's time limit; a run that needs longer goes on in the next one.
        gpus, cpus, mem: a run's, as `sbatch` takes them.
        setup: lines for the script, before the run starts.
        sets: further options of sbatch, `key=value`, or `key` for one without a value.
        wait: stay until all is settled.
    """

    jobs: int = 100
    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    gpus: int | None = None
    cpus: int = 1
    mem: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    retries: int = 1
    fresh: bool = False
    wait: bool = False
    grace: float = GRACE


def parameters(how: Slurm) -> dict[str, Any]:
    """What submitit writes into the batch script.

    Raises:
        VShiftError: an option of sbatch that is vshift's own to set, or malformed.
    """
    warning = min(WARNING, how.minutes * 30)
    wanted = {
        "job_name": "vshift",
        "partition": how.partition,
        "account": how.account,
        "time": how.minutes,
        "gpus_per_node": how.gpus,
        "cpus_per_task": how.cpus,
        "mem": how.mem,
        "constraint": how.constraint,
        # It reaches every process of the job: a run knows SIGUSR1, submitit's USR2 would kill it.
        "setup": ["export SUBMITIT_PREEMPT_SIGNAL=USR1", *how.setup],
        "srun_args": [f"--cpus-per-task={how.cpus}"],  # since Slurm 22.05 srun does not inherit it
        "stderr_to_stdout": True,
        "additional_parameters": {
            "requeue": True,
            "signal": f"USR1@{warning}",
            **dict(_sbatch_option(text) for text in how.sets),
        },
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _sbatch_option(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.partition("=")
    name = key.strip().removeprefix("--").replace("-", "_")
    where = f"--slurm-set {escape_control(text[:80])}"
    if not re.fullmatch("[a-z][a-z_0-9]*", name) or not text.isprintable():
        raise VShiftError(f"{where}: write an option of sbatch as key=value, for instance qos=high")
    if name in _OURS:
        raise VShiftError(f"{where}: {_OURS[name]}")
    return name, value.strip() if equals else True


def array_limit() -> int:
    """Tasks that one job array may have."""
    try:
        answer = subprocess.run(
            ["scontrol", "show", "config"],
            capture_output=True, text=True, timeout=ANSWER, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return LARGEST_ARRAY
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(match[1])) if match else LARGEST_ARRAY


def minutes(text: str) -> int:
    """A time limit as Slurm writes it, `90`, `8:00:00`, `2-12`, in minutes, rounded up.

    Raises:
        VShiftError: it is not one.
    """
    match = _TIME.fullmatch(text.strip())
    if match:
        days, first, second, third = (int(part or 0) for part in match.groups())
        if match[1] is not None:  # days-hours[:minutes[:seconds]]
            seconds = ((days * 24 + first) * 60 + second) * 60 + third
        elif match[4] is not None:  # hours:minutes:seconds
            seconds = (first * 60 + second) * 60 + third
        else:  # minutes[:seconds]
            seconds = first * 60 + second
        if seconds > 0:
            return math.ceil(seconds / 60)
    raise VShiftError(
        f"--time {escape_control(text[:40])}: write minutes, hours:minutes:seconds or "
        "days-hours, for "
        "instance 90, 8:00:00 or 2-12"
    )
