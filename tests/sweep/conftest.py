"""Sweeps whose runs are stubs: tests of scheduling start real processes, and train nothing."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vshift.config import config_hash, load
from vshift.sweep.local import LocalOptions, sweep
from vshift.sweep.plan import Job, plan
from vshift.sweep.progress import Entry
from vshift.train.progress import Reporter

STUB = Path(__file__).with_name("stub.py")
CONFIG = """\
name: s
data: {name: shapes, train: 64, test: 20, batch_size: 32}
network: {name: mlp, widths: [8]}
epochs: 2
hardware: {device: cpu, threads: 1}
"""


def reporter(terminal: bool = False, width: int = 100, height: int = 24) -> Reporter:
    """One that writes into `.console.file`."""
    made = Reporter()
    made.console = Console(
        file=io.StringIO(), force_terminal=terminal, highlight=False, soft_wrap=True,
        width=width, height=height, legacy_windows=False, _environ={"TERM": "xterm"},
    )  # fmt: skip
    return made


@dataclass
class Bench:
    """A folder with a config `s.yaml`, and a way to sweep over its seeds."""

    folder: Path
    seeds: int = 3
    sets: list[str] = field(default_factory=list)
    behaviours: dict[str, list[str]] = field(default_factory=dict)
    said: str = ""

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def jobs(self) -> list[Job]:
        sets = [*self.sets, f"seeds={list(range(self.seeds))}"]
        return plan([self.folder / "s.yaml"], sets)

    def command(self, config: Path, seed: int, runs_dir: Path) -> list[str]:
        found = load(config)
        plan_text = json.dumps(self.behaviours)
        words = [sys.executable, "-S", "-E", str(STUB), str(self.folder / "journal"), plan_text]
        return [*words, config_hash(found), found.name, str(seed), str(runs_dir)]

    def sweep(self, **how: Any) -> dict[str, Entry]:
        """By the end of each label: `seed 0`, …"""
        said = reporter()
        how = {"jobs": 2, "patience": 0.5, **how}
        try:
            entries = sweep(self.jobs, self.runs, LocalOptions(**how), said, self.command)
        finally:
            self.said = said.console.file.getvalue()  # type: ignore[attr-defined]
        return {entry.job.label.removeprefix("s "): entry for entry in entries}

    @property
    def journal(self) -> list[dict[str, Any]]:
        try:
            lines = (self.folder / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def begun(self) -> list[str]:
        """The labels of all attempts in the order of their beginning."""
        return [row["label"].removeprefix("s ") for row in self.journal if row["what"] == "begin"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "s.yaml").write_text(CONFIG)
    return Bench(tmp_path)
