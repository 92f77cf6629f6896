"""What a timing depends on besides the code: the device, its peaks and clock, and versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.bounds import Peaks
from benchmarks.results import DeviceInfo
from vshift.runs.prepare import versions

_CPU = Path("/proc/cpuinfo")
_MAX_KHZ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")

# The best kernels' speeds, not the data sheet's: dense bf16 matrix products, and HBM3 traffic.
REFERENCE = {"H100": Peaks(flops=800e12, bytes_per_second=3.0e12)}


def reference_peaks(device_name: str) -> Peaks | None:
    """The published peaks of a device; None for one that is not in the table."""
    return next((peaks for key, peaks in REFERENCE.items() if key in device_name), None)


def measure_peaks(device: torch.device, scale: float = 1.0) -> Peaks:
    """A large matrix product in bf16, and a copy that no cache holds; the best of several.

    Args:
        scale: factor on both sizes, for tests.
    """
    cuda = device.type == "cuda"
    side = max(64, int((8192 if cuda else 2048) * scale))
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    size = max(1024, int((2**30 if cuda else 2**28) * scale))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(
        flops=2 * side**3 / _best(lambda: a @ b, device),
        bytes_per_second=2 * size / _best(lambda: target.copy_(source), device),
    )


def _best(work: Callable[[], object], device: torch.device, runs: int = 8) -> float:
    """Seconds of the fastest of several runs, after two that warm up."""
    seconds = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def describe_device(device: torch.device, peaks: Peaks, load: float | None) -> DeviceInfo:
    """The device with its peaks, and the load before they were measured.

    Clocks are None if the system does not report them.
    """
    cuda = device.type == "cuda"
    max_mhz = None
    with suppress(OSError, ValueError):  # a virtual machine, or not Linux
        max_mhz = int(_MAX_KHZ.read_text("utf-8")) / 1000
    return DeviceInfo(
        kind="cuda" if cuda else "cpu",
        name=torch.cuda.get_device_name(device) if cuda else cpu_name(),
        cores=None if cuda else os.cpu_count(),
        threads=torch.get_num_threads(),
        clock_mhz=clock_mhz(device),
        clock_mhz_max=_query("clocks.max.sm") if cuda else max_mhz,
        load=load,
        flops=peaks.flops,
        bytes_per_second=peaks.bytes_per_second,
    )


def load_average() -> float | None:
    """Busy processes on the machine, averaged over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def cpu_name() -> str:
    """The processor as the system calls it, `Intel(R) Xeon(R) Processor`."""
    model = re.search(r"^model name\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def clock_mhz(device: torch.device) -> float | None:
    """The present clock: of the GPU's SMs, or the mean over the processor's cores."""
    if device.type == "cuda":
        return _query("clocks.sm")
    clocks = re.findall(r"^cpu MHz\s*: ([\d.]+)$", _cpuinfo(), re.MULTILINE)
    return fmean(map(float, clocks)) if clocks else None


def all_versions() -> dict[str, str | None]:
    """Of python, torch, torchvision and vshift, and of what torch was built with."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    driver = _text("driver_version") if torch.cuda.is_available() else None
    return {
        **versions(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": driver,
    }


def _cpuinfo() -> str:
    try:
        return _CPU.read_text("utf-8", "replace")
    except OSError:  # not Linux
        return ""


def _query(field: str) -> float | None:
    try:
        return float(_text(field) or "")
    except ValueError:
        return None


def _text(field: str) -> str | None:
    """One of nvidia-smi's fields of the current GPU; None if nvidia-smi does not report it."""
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    command = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", f"--query-gpu={field}"]
    command += ["--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
