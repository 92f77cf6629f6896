"""How long runs take, from runs of the same kind that are done."""

from __future__ import annotations

import heapq
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vshift.config import load
from vshift.config.schema import Config
from vshift.errors import VShiftError
from vshift.runs import RunFolder, find_runs, number
from vshift.runs.folder import CONFIG
from vshift.sweep.plan import Job

MOST_READ = 100  # runs that are not the sweep's own; a config takes some milliseconds to read


def kind(config: Config) -> str:
    """Configs of one kind take about the same time for an epoch.

    They share data, network, hardware and what is measured. Noise, norm and how the weights are
    updated hardly count.
    """
    sections = config.model_dump(include={"data", "network", "hardware", "measure"}, mode="json")
    for key in ("noise", "block"):
        sections["network"].pop(key, None)
    sections["data"].pop("augment", None)
    sections["hardware"].pop("threads", None)  # a finished run's config says what it was given
    return json.dumps(sections, sort_keys=True)


class Pace:
    """Seconds an epoch by kind of config, the median over the runs that were shown to it."""

    def __init__(self) -> None:
        self._known: dict[str, list[float]] = defaultdict(list)

    def learn(self, config: Config, seconds: float | None) -> None:
        """A run of so many seconds, all epochs together."""
        if seconds is not None and seconds > 0:
            self._known[kind(config)].append(seconds / config.epochs)

    def learn_from(self, jobs: Iterable[Job], runs_dir: Path) -> None:
        """From those jobs' runs that are done."""
        for job in jobs:
            self._learn_run(job.path(runs_dir), job.config)

    def learn_from_others(self, jobs: Sequence[Job], runs_dir: Path) -> None:
        """From the newest other runs in the folder, if there is a job that nothing is known of."""
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
                continue  # `vshift compare` is there to complain of damaged runs
            self._learn_run(record.path, config)

    def _learn_run(self, path: Path, config: Config) -> None:
        try:
            run = RunFolder(path).run
        except VShiftError:
            return
        if run.get("status") == "done":
            self.learn(config, number(run.get("seconds")))

    def seconds(self, config: Config, guess: bool = False) -> float | None:
        """About how long a run takes; None where no run of the kind is known.

        Args:
            guess: then take the median over all kinds that are known.
        """
        known = self._known.get(kind(config))
        if not known and guess:
            known = [second for seconds in self._known.values() for second in seconds]
        return statistics.median(known) * config.epochs if known else None


def side_by_side(running: Iterable[float], waiting: Iterable[float], places: int) -> float:
    """Seconds until all are done, each waiting run starting at the first place that is free."""
    free = sorted(running)[-places:]
    free = [0.0] * (places - len(free)) + free
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free, default=0.0)


def in_words(seconds: float) -> str:
    """`50 s`, `12 min`, `3 h 20 min`, `4 d 6 h`."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
