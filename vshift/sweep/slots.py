"""How many runs fit on this machine side by side: its processor cores and GPUs, shared out.

Nothing here imports torch. A sweep's own process then starts at once and takes little memory, and
none of the GPUs'.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vshift.text import pluralize

CGROUPS = Path("/sys/fs/cgroup")
DEVICES = Path("/dev")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TIMEOUT = 30.0  # seconds for nvidia-smi, which is slow if it has to start the driver


@dataclass(frozen=True)
class Slot:
    """Room for one run: a GPU's name for CUDA_VISIBLE_DEVICES, and a share of the cores.

    If `threads` is None the run has the machine to itself, and PyTorch chooses.
    """

    gpu: str | None
    threads: int | None

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of a run's process. A lower number of threads set by the user stays."""
        environment = dict(base)
        for name in THREADS if self.threads else ():
            own = base.get(name, "")
            limits = [int(own)] if own.isdecimal() and int(own) > 0 else []
            environment[name] = str(min([self.threads or 1, *limits]))
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        return environment


def allocate_slots(
    jobs: int | None, per_gpu: int, gpus: list[str], cores: int, warnings: list[str]
) -> list[Slot]:
    """The slots of a sweep.

    Args:
        jobs: runs at a time; None: one per slot on a GPU, or one without GPUs.
        per_gpu: runs that share a GPU.
        gpus: their names; none for runs on the processor.
        cores: that this process may use.
        warnings: to be appended to.
    """
    on_gpu = gpus * per_gpu  # a GPU gets its second run after every GPU has one
    count = jobs or len(on_gpu) or 1
    if on_gpu and count > len(on_gpu):
        warnings.append(
            f"{pluralize(len(gpus), 'GPU')} for {count} runs at a time: "
            f"{pluralize(len(on_gpu), 'run')} at a time; "
            f"--jobs-per-gpu {math.ceil(count / len(gpus))} lets them share"
        )
        count = len(on_gpu)
    if count > cores:
        warnings.append(
            f"{count} runs at a time on {pluralize(cores, 'processor core')} slow each other down; "
            f"--jobs {cores} is likely to be faster"
        )
    alone = count == 1 and cores >= (os.cpu_count() or 1)
    threads = None if alone else max(1, cores // count)
    return [Slot(on_gpu[n] if on_gpu else None, threads) for n in range(count)]


def available_cores() -> int:
    """Processor cores that this process may use, by affinity and by its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:  # not Linux
        allowed = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(allowed, math.floor(quota)) if quota else allowed)


def _cpu_quota() -> float | None:
    """Cores by the tightest CPU quota of this process's control groups, of version 2 or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS if not controllers else CGROUPS / "cpu"
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which is not visible; the root is then ours.
        for group in {root, folder, *(p for p in folder.parents if p.is_relative_to(root))}:
            with suppress(OSError, ValueError, ZeroDivisionError):  # "max" is no limit
                if (group / "cpu.max").is_file():
                    limit, period = (group / "cpu.max").read_text("utf-8").split()
                else:
                    limit = (group / "cpu.cfs_quota_us").read_text("utf-8").strip()
                    period = (group / "cpu.cfs_period_us").read_text("utf-8")
                if int(limit) > 0:
                    quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that CUDA would show, by their names in CUDA_VISIBLE_DEVICES.

    If the variable is set it is read as CUDA does, up to the first invalid entry. Otherwise
    nvidia-smi is asked; without it the device files are counted.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        valid = [bool(re.fullmatch(r"\d+|(GPU|MIG)-[\w/.-]+", name)) for name in names]
        names = names[: valid.index(False) if False in valid else None]
        return names if len(set(names)) == len(names) else []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", errors="replace",
            timeout=TIMEOUT, check=True,
        )  # fmt: skip
    except FileNotFoundError:
        return [str(n) for n in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_nvidia_smi(answer.stdout)


def parse_nvidia_smi(text: str) -> list[str]:
    """GPUs in the output of `nvidia-smi -L`: their numbers, or the UUIDs of a split one's parts."""
    names: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            names.append(match[1])
        elif match := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if names and names[-1].isdecimal():
                names.pop()  # a split GPU cannot be used as a whole
            names.append(match[1])
    return names
