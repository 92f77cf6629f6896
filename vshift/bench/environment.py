"""What a timing depends on besides the code: the device, its clock, and versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from vshift.bench.bounds import Peaks
from vshift.bench.results import DeviceInfo
from vshift.runs.prepare import versions

_CPU = Path("/proc/cpuinfo")
_MAX_KHZ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")


def describe_device(device: torch.device, peaks: Peaks, load: float | None) -> DeviceInfo:
    """The device with its peaks, and the load before they were measured.

    Clocks are None where the system does not tell them.
    """
    cuda = device.type == "cuda"
    return DeviceInfo(
        kind="cuda" if cuda else "cpu",
        name=torch.cuda.get_device_name(device) if cuda else cpu_name(),
        cores=None if cuda else os.cpu_count(),
        threads=torch.get_num_threads(),
        clock_mhz=clock_mhz(device),
        clock_mhz_max=_query("clocks.max.sm") if cuda else _max_cpu_mhz(),
        load=load,
        flops=peaks.flops,
        bytes_per_second=peaks.bytes_per_second,
    )


def load_average() -> float | None:
    """Busy processes on the machine, averaged over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def cpu_name() -> str:
    """The processor as the system calls it, `Intel(R) Xeon(R) Processor`."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def clock_mhz(device: torch.device) -> float | None:
    """The present clock: of the GPU's SMs, or the mean over the processor's cores."""
    if device.type == "cuda":
        return _query("clocks.sm")
    found = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)$", _cpuinfo(), re.MULTILINE)]
    return sum(found) / len(found) if found else None


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
        return _CPU.read_text()
    except OSError:  # not Linux
        return ""


def _cpu_field(name: str) -> str | None:
    found = re.search(rf"^{name}\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else None


def _max_cpu_mhz() -> float | None:
    try:
        return int(_MAX_KHZ.read_text()) / 1000
    except (OSError, ValueError):  # a virtual machine, or not Linux
        return None


def _query(field: str) -> float | None:
    try:
        return float(_text(field) or "")
    except ValueError:
        return None


def _text(field: str) -> str | None:
    """One of nvidia-smi's fields of the current GPU; None where nvidia-smi does not tell."""
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    command = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", f"--query-gpu={field}"]
    command += ["--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
