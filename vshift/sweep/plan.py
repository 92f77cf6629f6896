"""The runs of a sweep: every point of its configs with every seed, and the part of one machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vshift.config import Point, differences, expand
from vshift.config.batches import has_single_values, lone_images
from vshift.config.data import Cifar, OwnData
from vshift.config.load import is_base
from vshift.config.schema import Config
from vshift.config.shipped import find_config
from vshift.data import counts, describe, fetch
from vshift.errors import ConfigError, DataError, VShiftError
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
        """The run folder."""
        return run_path(runs_dir, self.config.name, self.seed)


def train_command(config: Path, seed: int, runs_dir: Path) -> list[str]:
    """The command that trains one run of a config file."""
    words = [sys.executable, "-m", "vshift", "train", str(config)]
    return [*words, "--seed", str(seed), "--runs-dir", str(runs_dir)]


def config_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are; folders replaced by the *.yaml files in them, sorted by name.

    In folders, files that are bases of others only are left out. What does not exist is looked for
    among the configs that vshift ships.
    """
    files: list[Path] = []
    for path in (find_config(path, str(path)) for path in paths):
        inside = sorted(p for p in path.glob("*.y*ml") if p.is_file()) if path.is_dir() else [path]
        if path.is_dir() and inside and not (inside := [p for p in inside if not is_base(p)]):
            raise ConfigError(f"{path}: every *.yaml in this folder is a base of others only")
        if not inside:
            folders = sorted({str(p.parent.relative_to(path)) for p in path.rglob("*.y*ml")})
            hint = f"; there are some in {', '.join(folders[:8])}" if folders else ""
            raise ConfigError(f"{path}: no *.yaml in this folder{hint}")
        files += inside
    return files


def expand_all(paths: Iterable[Path], sets: Sequence[str]) -> dict[Path, list[Point]]:
    """The points of every config.

    Raises:
        ConfigError: every problem of every config, also batches that do not fit data whose size is
            known without looking at files.
    """
    points: dict[Path, list[Point]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            points[path] = expand(path, sets)
        except ConfigError as error:
            problems += error.problems
            continue
        for config in (point.config for point in points[path]):
            known = counts(config.data) if has_single_values(config) else None
            if known and (problem := lone_images(config, *known)):
                problems.append(f"{escape_control(str(path))}: {config.name}: {problem}")
    if problems:
        raise ConfigError(*problems)
    return points


def plan(paths: Iterable[Path], sets: Sequence[str]) -> list[Job]:
    """Every run of the configs: their arms, zips and grids with every seed.

    Seed by seed: a sweep that is stopped half-way has trained all configs, if with fewer seeds.
    A run that several of them make, equal in everything that changes it, is one job.

    Raises:
        ConfigError: the problems of every config, or different configs with the same name.
    """
    jobs: dict[tuple[str, int], Job] = {}
    for path, points in expand_all(config_files(paths), sets).items():
        for point in points:
            for seed in point.config.seeds:
                job = Job(path, point, seed)
                other = jobs.setdefault((point.config.name, seed), job)
                if other is not job and differences(other.config, job.config):
                    raise ConfigError(
                        f"{path} and {other.source} both make a run named {job.label}; "
                        "give one of them another `name`"
                    )
    return sorted(jobs.values(), key=lambda job: job.config.seeds.index(job.seed))


def shard(jobs: Sequence[T], part: str) -> list[T]:
    """The i-th of n disjoint parts that together are all runs; `part` is `i/n` with i from 1.

    Every n-th run rather than a block of neighbours, so that a config's seeds and a grid's slow
    corner spread over all parts. It depends on the plan only, not on which runs are done, so
    machines need not agree on that.

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


def check_data(jobs: Iterable[Job]) -> None:
    """Check that the images are there; what torchvision has is downloaded, once for all runs.

    Raises:
        DataError: missing images, which would stop every run with the same message.
    """
    sections = {job.config.data.model_dump_json(): job.config.data for job in jobs}
    problems: dict[str, None] = {}
    for data in sections.values():
        try:
            if isinstance(data, OwnData) and not data.is_of_library:
                continue  # each run calls the user's function once; here it would be once more
            describe(data)
            if isinstance(data, Cifar | OwnData):
                fetch(data.name, data.root)
        except DataError as error:
            problems[str(error)] = None
    if problems:
        raise DataError("\n".join(problems))
