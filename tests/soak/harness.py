"""Start training, kill it at a random moment, start the same command again, until it is done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
WALL_TIME = {"seconds", "images_per_second"}
# Bit for bit; the others are compared without their times, see `differences`.
SAME_BYTES = (
    "config.yaml", "layers.jsonl", "channels.safetensors", "recalibration.json",
    "recalibration.safetensors", "modes.json", "summary.json",
)  # fmt: skip
# What depends on the clock, and the owner file of a process that was killed when all was done.
OF_ONE_ATTEMPT = {"checkpoint-previous.pt", "checkpoint-previous-2.pt", ".owner.json"}
ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


class Trainer:
    """`vshift train CONFIG`, in forks of one server or as `python -m vshift`."""

    def __init__(self, server: subprocess.Popen[str] | None) -> None:
        self.server = server
        self.process: subprocess.Popen[str] | None = None
        self.pid, self.ended = 0, True

    def start(self, words: list[str], messages: Path, **options: int | str) -> None:
        """Begin a command; `options` are the server's `folder`, `out`, `uid` and `largest_file`."""
        self.ended = False
        if self.server is None:
            with open(messages, "a") as file:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "vshift", *words],
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    env=environment(),
                    text=True,
                )
            self.pid = self.process.pid
            return
        assert self.server.stdin
        request = {"words": words, "messages": str(messages), **options}
        print(json.dumps(request), file=self.server.stdin)
        self.server.stdin.flush()
        self.pid = self._answer()["pid"]

    def run(self, words: list[str], folder: Path) -> tuple[int, str, str]:
        """A command in a folder, from its start to its end: exit code, stdout and stderr."""
        out, err = folder / "stdout", folder / "stderr"
        for path in (out, err):
            path.write_text("")
        self.start(words, err, folder=str(folder), out=str(out))
        return self.wait(), out.read_text(), err.read_text()

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it."""
        self.ended = True
        if self.process is not None:
            return self.process.wait(120)
        return int(self._answer()["code"])

    def end(self) -> None:
        """Nothing that was started is left running."""
        if self.pid and not self.ended:
            self.kill(signal.SIGKILL)
            self.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.server
        assert self.server.stdout
        line = self.server.stdout.readline()
        assert line, "the fork server died"
        return json.loads(line)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextmanager
def fork_server() -> Iterator[subprocess.Popen[str]]:
    """The server, ready when its imports are done."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


@dataclass
class Kill:
    """One kill: with what, how long after the start in seconds, and what was found after it."""

    number: int
    delay: float
    phase: str = ""
    place: str = ""

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"{name} after {self.delay:.3f} s: {self.phase}{self.place}"


@dataclass
class Case:
    """A run that was killed several times, and how it differs from one that never was."""

    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def train_whole(trainer: Trainer, config: Path, runs: Path) -> float:
    """Train without a kill; returns the seconds it took."""
    began = time.monotonic()
    trainer.start(["train", str(config), "--runs-dir", str(runs)], runs.with_suffix(".log"))
    code = trainer.wait()
    assert code == 0, runs.with_suffix(".log").read_text()
    return time.monotonic() - began


def train_killed(
    trainer: Trainer, config: Path, runs: Path, kills: int, seconds: float, chance: random.Random
) -> Case:
    """Train with up to so many kills, each at a random moment of what is left to do.

    Args:
        seconds: how long the whole run takes.
    """
    case, log, left = Case(), runs.with_suffix(".log"), 1.0
    words = ["train", str(config), "--runs-dir", str(runs)]
    while True:
        began = _written(runs, config)
        trainer.start(words, log)
        if len(case.kills) == kills:
            code = trainer.wait()
            assert code == 0, log.read_text()
            return case
        kill = Kill(chance.choices(list(ENDS), [6, 2, 1, 1])[0], chance.uniform(0, left * seconds))
        time.sleep(kill.delay)
        trainer.kill(kill.number)
        code = trainer.wait()
        assert code in (0, ENDS[kill.number], -kill.number), (kill, code, log.read_text())
        kill.phase, kill.place = where(runs, config)
        if _written(runs, config) == began:  # it had not come so far as to take the folder
            kill.phase = "start-up"
        if code == 0:  # it was done before the kill came
            return case
        case.kills.append(kill)
        # A fifth or so is what every start takes, however little is left to do.
        left = 0.25 + 0.75 * (1 - progress(runs / config.stem / "seed-0"))


def _written(runs: Path, config: Path) -> int:
    """When a run's run.json was last written; every attempt begins with that."""
    path = runs / config.stem / "seed-0" / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def progress(folder: Path) -> float:
    """The share of its epochs that a run's checkpoint comes after."""
    if not _has(folder, "checkpoint.pt"):
        return 0.0
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    return float(state["epoch"] / _epochs(folder))


def _epochs(folder: Path) -> int:
    return int(yaml.safe_load((folder / "config.yaml").read_text())["epochs"])


def where(runs: Path, config: Path) -> tuple[str, str]:
    """What a kill left: (phase, place in words)."""
    folder = runs / config.stem / "seed-0"
    if not (folder / "run.json").exists():
        return "start-up", ""
    rows = (_bytes(folder / "metrics.jsonl") or b"").count(b"\n")
    place = f", {rows} epochs logged"
    if _has(folder, "checkpoint.pt"):
        state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
        place += f", checkpoint at {state['epoch']}+{state['step']}"
        if rows == state["epoch"] + 1 == _epochs(folder):
            return "measuring", place
    if _has(folder, "summary.json"):
        return "finishing", place
    return ("writing" if list(folder.glob(".*.tmp")) else "training"), place


def _has(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def differences(whole: Path, parts: Path) -> list[str]:
    """The files of two finished runs that are not the same bit for bit, times aside."""
    found = [name for name in SAME_BYTES if _bytes(whole / name) != _bytes(parts / name)]
    if _rows(whole / "metrics.jsonl") != _rows(parts / "metrics.jsonl"):
        found.append("metrics.jsonl")
    if not same(_checkpoint(whole), _checkpoint(parts)):
        found.append("checkpoint.pt")
    kept = {"status", "name", "seed", "config_hash", "data", "precision", "step", "threads"}
    runs = [json.loads((folder / "run.json").read_text()) for folder in (whole, parts)]
    if [{k: v for k, v in run.items() if k in kept} for run in runs] != [
        {"status": "done", **{k: runs[0][k] for k in runs[0] if k in kept}}
    ] * 2:
        found.append("run.json")
    names = [{p.name for p in folder.iterdir()} - OF_ONE_ATTEMPT for folder in (whole, parts)]
    return found + [f"only in one: {name}" for name in names[0] ^ names[1]]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in WALL_TIME} for row in rows]


def _checkpoint(folder: Path) -> Any:
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    state["inside"]["seconds"] = 0.0
    return state


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def phases(cases: list[Case]) -> Counter[str]:
    return Counter(kill.phase for case in cases for kill in case.kills)
