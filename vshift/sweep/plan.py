"""What a sweep runs: the points of configs × seeds, and the part of them that is this machine's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vshift.config import Point, expand
from vshift.config.schema import Config
from vshift.errors import ConfigError, VShiftError
from vshift.runs import run_path
from vshift.text import escape_control

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    source: Path
    point: Point
    seed: int

    @property
    def config(self) -> Config:
        return self.point.config

    @property
    def label(self) -> str:
        return f"{self.config.name} seed {self.seed}"

    def path(self, runs_dir: Path) -> Path:
        """Its run folder."""
        return run_path(runs_dir, self.config.name, self.seed)

    def command(self, sets: Sequence[str], runs_dir: Path, fresh: bool = False) -> list[str]:
        """The `vshift train` that a person would type for this run."""
        values = [*sets, f"name={json.dumps(self.config.name)}"]
        values += [f"{section}=null" for section in self.point.of]
        values += [f"{key}={json.dumps(value)}" for key, value in self.point.assignments.items()]
        words = [sys.executable, "-m", "vshift", "train", str(self.source)]
        for value in values:
            words += ["--set", value]
        words += ["--seed", str(self.seed), "--runs-dir", str(runs_dir)]
        return [*words, "--fresh"] if fresh else words


def config_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are; for a folder the *.yaml in it, in order of name."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.glob("*.y*ml") if p.is_file()) if path.is_dir() else [path]
        if not inside:
            folders = sorted({str(p.parent.relative_to(path)) for p in path.rglob("*.y*ml")})
            hint = f"; there are some in {', '.join(folders[:8])}" if folders else ""
            raise ConfigError(f"{path}: no *.yaml in this folder{hint}")
        found += inside
    return found


def expand_all(paths: Iterable[Path], sets: Sequence[str]) -> dict[Path, list[Point]]:
    """The points of every config.

    Raises:
        ConfigError: every problem of every config.
    """
    found: dict[Path, list[Point]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            found[path] = expand(path, sets)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return found


def plan(paths: Iterable[Path], sets: Sequence[str]) -> list[Job]:
    """Every run that configs, their arms, zips, grids and seeds name.

    Raises:
        ConfigError: the problems of every config, or two configs with one name.
    """
    jobs: dict[tuple[str, int], Job] = {}
    for path, points in expand_all(config_files(paths), sets).items():
        for point in points:
            for seed in point.config.seeds:
                job = Job(path, point, seed)
                other = jobs.setdefault((point.config.name, seed), job)
                if other is not job:
                    raise ConfigError(
                        f"{path} and {other.source} both make a run named {job.label}; "
                        "give one of them another `name`"
                    )
    return list(jobs.values())


def shard(jobs: Sequence[T], part: str) -> list[T]:
    """The i-th of n parts, `i/n` with i from 1: no run is in two parts, none is in no part.

    Every n-th run, not a block of neighbours: a config's seeds and a grid's slow corner spread over
    all parts. It depends on the plan only, not on what is done, so machines need not agree on that.

    Raises:
        VShiftError: `part` is not like 1/4.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return list(jobs[int(match[1]) - 1 :: int(match[2])])
    raise VShiftError(
        f"--shard {escape_control(part)}: write i/n with 1 ≤ i ≤ n; --shard 1/4, 2/4, 3/4 and 4/4 "
        "together are all runs"
    )
