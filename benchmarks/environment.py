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
from vshift.kernels.build import CAPPED_BY
from vshift.runs.prepare import versions

_CPU = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")
_MAX_KHZ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")

# The best kernels' speeds, not the data sheet's: dense bf16 matrix products, and HBM3 traffic.
REFERENCE = {"H100": Peaks(flops=800e12, bytes_per_second=3.0e12)}

# What makes PyTorch, oneDNN, MKL and vshift's kernels leave instructions alone, read once by each
# process. The compiler of torch.compile takes its vectors' width from the first.
CAPS = {
    name: dict(zip(CAPPED_BY, words, strict=True))
    for name, words in {
        "avx2": ("avx2", "AVX2", "AVX2", "x86-64-v3"),
        "avx512": ("avx512", "AVX512_CORE", "AVX512", "x86-64-v4"),
        "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512", "x86-64-v4"),
    }.items()
}  # fmt: skip
CAPS["native"] = {}
_NEEDED = {
    "avx2": ["avx2"], "avx512": ["avx512f"], "avx512_bf16": ["avx512f", "avx512_bf16"],
    "native": [],
}  # fmt: skip


def reference_peaks(device_name: str) -> Peaks | None:
    """The published peaks of a device; None for one that is not in the table."""
    return next((peaks for key, peaks in REFERENCE.items() if key in device_name), None)


def measure_peaks(device: torch.device, scale: float = 1.0) -> Peaks:
    """A large matrix product, in bf16 or float32, and a copy that no cache holds; the best of
    several.

    Args:
        scale: factor on both sizes, for tests.
    """
    cuda = device.type == "cuda"
    side = max(64, int((8192 if cuda else 2048) * scale))
    a, b = torch.randn(2, side, side, device=device)
    products = {"bf16": (a.bfloat16(), b.bfloat16()), "float32": (a, b)}
    few = side // 4  # where bf16 is emulated, a large product takes minutes

    def seconds(precision: str, rows: int) -> float:
        left, right = (matrix[:rows, :rows].contiguous() for matrix in products[precision])
        return _best(lambda: left @ right, device)

    fastest = min(products, key=lambda precision: seconds(precision, few))
    size = max(1024, int((2**30 if cuda else 2**28) * scale))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(
        flops=2 * side**3 / seconds(fastest, side),
        bytes_per_second=2 * size / _best(lambda: target.copy_(source), device),
        precision=fastest,
    )


def _best(work: Callable[[], object], device: torch.device, runs: int = 8) -> float:
    """Seconds of the fastest of several runs after two that warm up, or of two seconds' runs."""
    seconds: list[float] = []
    while len(seconds) < runs + 2 and sum(seconds) < 2:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:] or seconds)


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
        flops_precision=peaks.precision,
        bytes_per_second=peaks.bytes_per_second,
        isa="native" if cuda else isa(),
    )


def isa() -> str:
    """The instruction set that this process is capped to, or `native`."""
    return next(n for n, cap in CAPS.items() if all(os.environ.get(k) == cap[k] for k in cap))


def has_isa(name: str) -> bool:
    """Whether the processor has these instructions, as far as it tells."""
    flags = re.search(r"^flags\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    return {*_NEEDED[name]} <= {*(flags[1].split() if flags else ())}


def busy_cores(seconds: float = 1.0) -> float | None:
    """The number of cores that other programs keep busy, over a second; where the system does not
    tell, the load of the last minute; None where it tells neither."""
    before = _cpu_seconds()
    if before is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    own, began = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    busy = (_cpu_seconds() or before) - before
    return max(0.0, busy - (time.process_time() - own)) / (time.perf_counter() - began)


def _cpu_seconds() -> float | None:
    """Seconds that all cores together were busy since the system's start; None if unknown."""
    try:
        words = _STAT.read_text("utf-8").split("\n", 1)[0].split()
        ticks = [int(word) for word in words[1:9]]  # user, nice, system, idle, iowait, …, steal
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


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
