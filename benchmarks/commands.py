"""Whole commands: the wall time of `vshift train` from its start to its last line."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.race import Budget
from benchmarks.results import Command, Series
from vshift.config import load
from vshift.errors import TrainingFailed
from vshift.runs import RunFolder, run_path
from vshift.train.progress import Reporter


def time_command(
    path: Path,
    repeats: int,
    threads: int | None,
    device: torch.device,
    budget: Budget,
    reporter: Reporter,
) -> Iterator[Command]:
    """Train a config's first seed in processes of their own, with what each of them records.

    Yields:
        All runs so far, after each of them.

    Raises:
        TrainingFailed: a run failed.
    """
    config = load(path, [] if threads is None else [f"hardware.threads={threads}"])
    words = ["--seed", str(config.seeds[0]), "--device", device.type, "--quiet"]
    words += [] if threads is None else ["--set", f"hardware.threads={threads}"]
    seconds: list[float] = []
    shares: list[float] = []
    starts: list[float] = []
    for _ in range(repeats):
        if seconds and budget.left() <= seconds[-1]:
            return
        with tempfile.TemporaryDirectory(prefix="vshift-") as runs:
            command = [sys.executable, "-m", "vshift", "train", str(path), *words]
            began = time.perf_counter()
            done = subprocess.run(
                [*command, "--runs-dir", runs], capture_output=True, encoding="utf-8",
                errors="replace", check=False,
            )  # fmt: skip
            seconds.append(time.perf_counter() - began)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise TrainingFailed(f"vshift train {path}: {last}")
            run = RunFolder(run_path(runs, config.name, config.seeds[0])).run
        shares.append(run["timing"]["steps_share"])
        starts.append(run["timing"]["start"])
        reporter.say(f"vshift train {path}: {seconds[-1]:.1f} s, {shares[-1]:.0f} % of it steps")
        yield Command(
            name=str(path),
            seconds=Series.of(seconds),
            steps_share=Series.of(shares),
            start=Series.of(starts),
            precision=run["precision"],
            step=run["step"],
        )
