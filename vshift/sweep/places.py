"""What this machine can run side by side: its processor cores and its GPUs, shared out.

Nothing here imports torch. A sweep's own process then takes a moment to start, little memory, and
none of the GPUs'.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vshift.text import pluralize

CGROUPS = Path("/sys/fs/cgroup")
DEVICES = Path("/dev")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ANSWER = 30.0  # seconds that nvidia-smi gets; it is slow where it has to start the driver


@dataclass(frozen=True)
class Place:
    """Room for one run: a GPU's name for CUDA_VISIBLE_DEVICES, and its share of the cores.

    Without a number of threads the run has the machine to itself, and PyTorch chooses.
    """

    gpu: str | None
    threads: int | None

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """What a run's process gets. A number of threads that the user set lower stays."""
        found = dict(base)
        for name in THREADS if self.threads else ():
            own = base.get(name, "")
            limits = [int(own)] if own.isdecimal() and int(own) > 0 else []
            found[name] = str(min([self.threads or 1, *limits]))
        if self.gpu is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.gpu
        return found


def places(
    jobs: int | None, per_gpu: int, gpus: list[str], available: int, said: list[str]
) -> list[Place]:
    """The places of a sweep.

    Args:
        jobs: runs at a time; None: one for each place on a GPU, or one without GPUs.
        per_gpu: runs that share a GPU.
        gpus: their names; none for runs on the processor.
        available: cores that this process may use.
        said: takes what the user should know.
    """
    slots = [gpu for _ in range(per_gpu) for gpu in gpus]  # a second run comes when all have one
    count = jobs or len(slots) or 1
    if slots and count > len(slots):
        said.append(
            f"{pluralize(len(gpus), 'GPU')} for {count} runs at a time: "
            f"{pluralize(len(slots), 'run')} at a time; "
            f"--jobs-per-gpu {math.ceil(count / len(gpus))} lets them share"
        )
        count = len(slots)
    if count > available:
        said.append(
            f"{count} runs at a time on {pluralize(available, 'processor core')} disturb each "
            "other; "
            f"--jobs {available} is likely to be faster"
        )
    alone = count == 1 and available >= (os.cpu_count() or 1)
    threads = None if alone else max(1, available // count)
    return [Place(slots[n] if slots else None, threads) for n in range(count)]


def cores() -> int:
    """Processor cores that this process may use, by affinity and by its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:  # not Linux
        allowed = os.cpu_count() or 1
    quota = _quota()
    return max(1, min(allowed, math.floor(quota)) if quota else allowed)


def _quota() -> float | None:
    """Cores by the tightest CPU quota of this process's control groups, of version 2 or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS if not controllers else CGROUPS / "cpu"
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which cannot be seen: then the root is ours.
        for inside in {root, folder, *(p for p in folder.parents if p.is_relative_to(root))}:
            quotas += _quota_of(inside)
    return min(quotas, default=None)


def _quota_of(folder: Path) -> list[float]:
    """Cores that a control group grants; empty if it sets no limit."""
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        return [int(limit) / int(period)] if int(limit) > 0 else []
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no limit
        return []


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that CUDA would show, by what CUDA_VISIBLE_DEVICES calls them.

    What the variable says counts, as CUDA reads it: up to the first entry that is none. Otherwise
    nvidia-smi is asked, and where there is none the device files are counted.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        good = [bool(re.fullmatch(r"\d+|(GPU|MIG)-[\w/.-]+", name)) for name in names]
        names = names[: good.index(False) if False in good else None]
        return names if len(set(names)) == len(names) else []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ANSWER, check=True
        )
    except FileNotFoundError:
        return [str(n) for n in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]
    except (OSError, subprocess.SubprocessError):
        return []
    return listed(answer.stdout)


def listed(text: str) -> list[str]:
    """GPUs in the answer of `nvidia-smi -L`: their numbers, or for split ones each part's UUID."""
    found: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            found.append(match[1])
        elif match := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if found and found[-1].isdecimal():
                found.pop()  # as a whole it cannot be used
            found.append(match[1])
    return found
