"""Many runs: the points of configs × seeds, each in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vshift.children import Children
from vshift.config import Point, expand
from vshift.config.schema import Config
from vshift.errors import ConfigError, Interrupted, TrainingFailed
from vshift.progress import Reporter
from vshift.runs import RunFolder, look, run_path


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
    """Every run that configs, their arms, grids and seeds name.

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


def describe(jobs: Sequence[Job], runs_dir: Path) -> str:
    """One line a run: its folder and what would be done in it."""
    return "\n".join(
        f"{run_path(runs_dir, job.config.name, job.seed)}: {_state(job, runs_dir)}" for job in jobs
    )


def sweep(
    jobs: Sequence[Job],
    *,
    sets: Sequence[str],
    runs_dir: Path,
    workers: int,
    fresh: bool = False,
    reporter: Reporter,
) -> None:
    """Run what is not done, `workers` at a time.

    Raises:
        TrainingFailed: at the end, naming the runs that failed.
        Interrupted: a signal asked to stop, and every run that was going on has stopped.
    """
    waiting = [job for job in jobs if fresh or _state(job, runs_dir) != "done"]
    reporter.say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done")
    environment = _environment(workers)

    children = Children()

    def work(job: Job) -> bool:
        command = job.command(sets, runs_dir, fresh)
        return _run(children, command, job.label, environment, workers > 1, reporter)

    message = "" if reporter.quiet else "stopping: every run writes its checkpoint and ends"
    with children.listening(message), ThreadPoolExecutor(workers) as pool:
        succeeded = list(pool.map(work, waiting))
    if children.stop.asked and not all(succeeded):
        left = len(succeeded) - sum(succeeded)
        raise Interrupted(
            f"interrupted with {left} of {len(jobs)} runs to go; the same command goes on with them"
            + (", without --fresh" if fresh else ""),
            children.stop.exit_code,
        )
    failed = [job.label for job, good in zip(waiting, succeeded, strict=True) if not good]
    if failed:
        raise TrainingFailed(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")


def _state(job: Job, runs_dir: Path) -> str:
    return look(RunFolder(run_path(runs_dir, job.config.name, job.seed)), job.config)


def _environment(workers: int) -> dict[str, str]:
    """Each worker gets its share of the cores: threads that spin against each other are slow."""
    if workers == 1:
        return dict(os.environ)
    share = max(1, (os.cpu_count() or 1) // workers)
    return {**os.environ, "OMP_NUM_THREADS": str(share)}


def _run(
    children: Children,
    command: list[str],
    label: str,
    environment: dict[str, str],
    apart: bool,
    reporter: Reporter,
) -> bool:
    """Run one command; side by side, its messages are shown only if it fails."""
    if not apart:
        return children.run(command, env=environment) == 0
    if children.stop.asked:
        return False
    reporter.say(f"{label}: started")
    with tempfile.TemporaryFile() as messages:
        code = children.run(command, env=environment, stdout=messages, stderr=messages)
        messages.seek(0)
        text = messages.read().decode(errors="replace").strip()
    last = text.splitlines()[-1] if text else ""
    ended_well = code == 0 or (children.stop.asked and code in (130, 143, None))
    reporter.say(last if ended_well else f"{label} failed:\n{text}")
    return code == 0
