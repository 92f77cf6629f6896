"""A device's two peaks: measured here, and the H100's as a reference that others can compare to."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vshift.bench.bounds import Peaks

# What the best kernels reach, not the data sheet: dense bf16 matrix products, and HBM3 traffic.
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
    """Seconds of the fastest of several runs, behind two that warm up."""
    seconds = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])
