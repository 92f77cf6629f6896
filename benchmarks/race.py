"""Who runs when, and the clock: contenders take turns, epoch by epoch, in one process."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vshift.errors import VShiftError

Clock = Callable[[], float]
Epoch = Callable[[], float]  # trains for an epoch and returns its mean loss


class Runner(Protocol):
    """Something that trains, ready to go."""

    def epoch(self) -> float:
        """Train once over all images; returns the mean loss."""
        ...


class Budget:
    """Seconds that may be spent; None is without end."""

    def __init__(self, seconds: float | None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds

    def left(self) -> float:
        return self._end - self._clock()

    def share(self, parts: int) -> Budget:
        """An equal part of what is left, beginning now."""
        left = self.left()
        return Budget(None if math.isinf(left) else left / parts, self._clock)


def failure_line(error: Exception) -> str:
    """An error in a line: its kind, unless it is written for people, and its message's first."""
    line = (str(error).strip().splitlines() or ["no message"])[0][:300]
    return line if isinstance(error, VShiftError) else f"{type(error).__name__}: {line}"


class OutOfTime(BaseException):
    """A time limit is over. Not an Exception: compilers catch those and try something else."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """In the main thread, raise OutOfTime inside once the seconds are over."""
    if math.isinf(seconds):
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Forecast:
    """How long contenders took to get ready; compilers take their time by the layer."""

    def __init__(self) -> None:
        self._per_layer: dict[str, float] = {}

    def note(self, name: str, layers: int, seconds: float) -> None:
        self._per_layer[name] = max(self._per_layer.get(name, 0.0), seconds / layers)

    def seconds(self, name: str, layers: int) -> float:
        """The expected seconds; 0 for an unknown contender."""
        return self._per_layer.get(name, 0.0) * layers


@dataclass
class Ready:
    """A contender after its warm-up epoch.

    Attributes:
        setup_seconds: for building, compiling and the first epoch.
        held: bytes of GPU memory that it keeps between epochs; None on a CPU.
        reserved: the same, with the pools of its CUDA graphs and without what other allocations
            share.
        seconds, loss: of each timed epoch.
    """

    name: str
    runner: Runner
    setup_seconds: float
    held: int | None = None
    reserved: int = 0
    transient: int = 0
    seconds: list[float] = field(default_factory=list)
    loss: float = math.nan

    @property
    def peak_memory(self) -> int | None:
        """Bytes of GPU memory it would need alone; None on a CPU, where it is not measured."""
        return None if self.held is None else max(self.held + self.transient, self.reserved)


def prepare(name: str, build: Callable[[], Runner], device: torch.device) -> Ready:
    """Build a contender and train one epoch that is not timed."""
    before = _memory(device)
    began = time.perf_counter()
    runner = build()
    runner.epoch()
    ready = Ready(name, runner, time.perf_counter() - began)
    if before is not None and (after := _memory(device)) is not None:
        ready.held, ready.reserved = (now - then for now, then in zip(after, before, strict=True))
    return ready


def _memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes in tensors, and bytes taken from the GPU with what is merely cached given back."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def order(count: int, repeat: int) -> list[int]:
    """Who runs in turn: forwards and backwards in turn, so that slow drifts cancel."""
    return list(range(count))[:: -1 if repeat % 2 else 1]


def race(
    contenders: Sequence[Ready],
    repeats: int,
    device: torch.device,
    budget: Budget,
    say: Callable[[int], None] = lambda repeat: None,
) -> None:
    """Time an epoch of every contender, `repeats` times, into their `seconds`.

    With the budget spent no further repeat begins, but there is always one.

    Args:
        say: called after each repeat with its number, from 1.
    """
    for repeat in range(repeats):
        if repeat and budget.left() <= 0:
            return
        for i in order(len(contenders), repeat):
            time_epoch(contenders[i], device)
        say(repeat + 1)


def time_epoch(contender: Ready, device: torch.device) -> None:
    """Train one epoch against the device's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        contender.loss = contender.runner.epoch()
        contender.seconds.append(time.perf_counter() - began)
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    resident = torch.cuda.memory_allocated(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    contender.loss = contender.runner.epoch()
    end.record()
    torch.cuda.synchronize(device)
    contender.seconds.append(start.elapsed_time(end) / 1000)
    transient = torch.cuda.max_memory_allocated(device) - resident
    contender.transient = max(contender.transient, transient)
