"""How long runs take, from those that are done, and a sweep that is only listed."""

from __future__ import annotations

import heapq
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vshift.config import load
from vshift.config.schema import Config
from vshift.errors import VShiftError
from vshift.runs import RunFolder, find_runs, number
from vshift.runs.files import Row
from vshift.runs.folder import CONFIG
from vshift.sweep.plan import Job
from vshift.sweep.status import State, all_statuses, last_epoch
from vshift.text import format_duration, pluralize

MOST_READ = 100  # runs that are not the sweep's own; reading a config takes some milliseconds


class RuntimeEstimator:
    """How long runs take, from the median seconds per epoch of finished runs of the same kind."""

    def __init__(self) -> None:
        self._per_epoch: dict[str, list[float]] = defaultdict(list)

    def add(self, config: Config, seconds: float | None) -> None:
        """Record a finished run and its seconds for all epochs together."""
        if seconds is not None and seconds > 0:
            self._per_epoch[cost_key(config)].append(seconds / config.epochs)

    def add_run(self, path: Path, config: Config) -> None:
        """Record the run in a folder, if it is done."""
        try:
            run = RunFolder(path).run
        except VShiftError:
            return
        if run.get("status") == "done":
            self.add(config, number(run.get("seconds")))

    def add_others(self, jobs: Sequence[Job], runs_dir: Path) -> None:
        """Record the newest other runs in the folder, if nothing is known of one of the jobs."""
        if all(self.seconds(job.config) is not None for job in jobs):
            return
        own = {job.path(runs_dir).resolve() for job in jobs}
        try:
            records = find_runs([runs_dir])
        except VShiftError:
            return
        others = [r for r in records if r.status == "done" and r.path.resolve() not in own]
        others.sort(key=lambda record: str(record.run.get("finished")), reverse=True)
        for record in others[:MOST_READ]:
            try:
                config = load(record.path / CONFIG)
            except (VShiftError, UnicodeDecodeError):
                continue  # `vshift compare` reports damaged runs
            self.add_run(record.path, config)

    def seconds(self, config: Config, guess: bool = False) -> float | None:
        """About how long a run takes; None if no run of the same kind is known.

        Args:
            guess: then use the median over all kinds.
        """
        known = self._per_epoch.get(cost_key(config))
        if not known and guess:
            known = [second for seconds in self._per_epoch.values() for second in seconds]
        return statistics.median(known) * config.epochs if known else None


def cost_key(config: Config) -> str:
    """The settings that decide the time of an epoch: data, network, hardware, measurements.

    Noise, norm and the optimizer hardly count.
    """
    sections = config.model_dump(include={"data", "network", "hardware", "measure"}, mode="json")
    for key in ("noise", "block"):
        sections["network"].pop(key, None)
    sections["data"].pop("augment", None)
    for key in ("threads", "precision"):  # a finished run's config has what `auto` became
        sections["hardware"].pop(key, None)
    return json.dumps(sections, sort_keys=True)


def makespan(running: Iterable[float], waiting: Iterable[float], slots: int) -> float:
    """Seconds until all runs are done, if each waiting run starts in the first free slot."""
    free = sorted(running)[-slots:]
    free = [0.0] * (slots - len(free)) + free
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free, default=0.0)


def dry_run(
    jobs: Sequence[Job],
    runs_dir: Path,
    slots: int,
    fresh: bool,
    measure: Callable[[Config], float | None] = lambda _: None,
) -> tuple[str, str, str]:
    """A sweep without its trainings: one line per run, the same as JSON, the total time.

    Nothing is written.

    Args:
        measure: gives the seconds of an epoch's training steps of a config that has no finished
            run, or None.
    """
    estimator = RuntimeEstimator()
    for job in jobs:
        estimator.add_run(job.path(runs_dir), job.config)
    estimator.add_others(jobs, runs_dir)
    measured: set[str] = set()
    for config in {cost_key(job.config): job.config for job in jobs}.values():
        if estimator.seconds(config) is None and (seconds := measure(config)):
            estimator.add(config, seconds * config.epochs)
            measured.add(cost_key(config))
    rows: list[Row] = []
    lines: list[str] = []
    for job, status in zip(jobs, all_statuses(jobs, runs_dir), strict=True):
        path = job.path(runs_dir)
        state = State.new if fresh and status.state is not State.running else status.state
        seconds = 0.0 if state.settled else estimator.seconds(job.config)
        if seconds and state is not State.new:
            done = last_epoch(path).get("epoch", 0)
            seconds *= 1 - min(done, job.config.epochs) / job.config.epochs
        row = {"name": job.config.name, "seed": job.seed, "path": str(path), "state": str(state)}
        rows.append({**row, "by": status.by, "epochs": job.config.epochs, "seconds_left": seconds})
        by = f" ({status.by})" if status.by else ""
        time_left = f", about {format_duration(seconds)}" if seconds else ""
        lines.append(f"{path}: {state}{by}{time_left}")
    total = _total_in_words(rows, slots)
    if measured:
        total += (
            "; from training steps timed now on random images where no run is finished yet, "
            "without tests and measurements"
        )
    return "\n".join(lines), json.dumps(rows, indent=1), total


def _total_in_words(rows: Sequence[Row], slots: int) -> str:
    """`4 runs, 3 to do: about 30 min one after the other, 20 min with 2 at a time`."""
    left = [row["seconds_left"] for row in rows if not State(row["state"]).settled]
    known = [seconds for seconds in left if seconds is not None]
    total = f"{pluralize(len(rows), 'run')}, {len(left)} to do"
    if len(known) < len(left):
        total += (
            f"; the time of {len(left) - len(known)} of them is unknown: no finished run in "
            "this --runs-dir has their data, network and hardware"
        )
    elif left:
        alone, together = sum(known), makespan([], known, slots)
        total += f": about {format_duration(alone)}"
        if together < alone:
            total += f" one after the other, {format_duration(together)} with {slots} at a time"
    return total
