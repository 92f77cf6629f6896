"""`vshift bench`: race every case, all its contenders in one process.

In reading order: `cases` (what is raced), `training` (vshift's contender), `peers` and
`plain_network` (the other loops), `race` (turns and the clock), `bounds` (how fast it could be),
`environment` (the device), `results` (the JSON file), `render` (tables), and this module, which
calls them all.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.bounds import Peaks, bounds_of
from benchmarks.cases import KINDS, Case, check_known, make_config
from benchmarks.environment import measure_peaks, reference_peaks
from benchmarks.peers import PEERS, TITLES
from benchmarks.plain_network import make_peer
from benchmarks.race import (
    Budget,
    Forecast,
    OutOfTime,
    Ready,
    Runner,
    failure_line,
    prepare,
    race,
    time_epoch,
    time_limit,
)
from benchmarks.render import render
from benchmarks.results import (
    Bound,
    CaseResult,
    Contender,
    LeftOut,
    LoggingCost,
    Ratio,
    Results,
    Series,
    paired,
)
from benchmarks.training import CLASSES, SIZE, Training, random_images
from vshift.config.schema import Hardware
from vshift.errors import Interrupted, Stopped, TrainingFailed
from vshift.networks.build import build
from vshift.networks.summary import trace
from vshift.runs.folder import now
from vshift.runs.prepare import git_commit
from vshift.text import pluralize
from vshift.train.device import choose_device, configure
from vshift.train.progress import Reporter

STEPS = {"cpu": 15, "cuda": 200}
CHANNELS = 3
SLOW = ("airbench",)  # peers whose compiler may take minutes
BUSY = 0.5  # busy processes; more of them are worth a warning


@dataclass(frozen=True)
class Plan:
    """What to race.

    Attributes:
        kinds: of vshift's step; `logs`: each with logging on, off or both; `peers`: by name.
        steps: per epoch, the unit that is timed; default: 15 on a CPU, 200 on a GPU.
        repeats: timed epochs per contender, after one that is not timed.
        budget: seconds after which nothing new is started.
        scale: of the work that measures the device's peaks.
    """

    cases: Sequence[Case]
    kinds: Sequence[str] = ("auto",)
    logs: Sequence[bool] = (True, False)
    peers: Sequence[str] = ()
    steps: int | None = None
    repeats: int = 5
    budget: float | None = None
    device: str = "auto"
    threads: int | None = None
    scale: float = 1.0


def bench(plan: Plan, reporter: Reporter, save: Callable[[Results], None]) -> Results:
    """Race every case of a plan.

    Args:
        save: called with everything so far after each contender and each race, so that a kill loses
            little.

    Raises:
        ConfigError: an unknown kind or peer, or a device that is not available.
    """
    check_known("--kinds", plan.kinds, KINDS)
    check_known("--peer", plan.peers, PEERS)
    budget = Budget(plan.budget)
    device = choose_device(plan.device)
    configure(Hardware(threads=plan.threads), device)
    load = environment.load_average()
    info = environment.describe_device(device, measure_peaks(device, plan.scale), load)
    reporter.say(
        f"{info.name}, {pluralize(info.threads, 'thread')}: {pluralize(len(plan.cases), 'case')}"
    )
    if info.load is not None and info.load > BUSY:
        reporter.say(
            f"other programs kept {info.load:.1f} cores busy in the last minute: timings on a busy "
            "machine measure them too"
        )
    results = Results(
        created=now(),
        device=info,
        versions=environment.all_versions(),
        git=git_commit(),
        steps=plan.steps or STEPS[device.type],
        repeats=plan.repeats,
        budget=plan.budget,
        cases=[],
        not_raced=[],
    )
    forecast = Forecast()
    for i, case in enumerate(plan.cases):
        if budget.left() <= 0:
            results.not_raced.append(str(case))
            reporter.say(f"{case}: left out, no time is left")
            continue
        share = budget.share(len(plan.cases) - i)
        race_of = _CaseRace(case, plan, device, results.steps, forecast, share, reporter)
        before = len(results.cases)
        for result in race_of.run(Peaks(info.flops, info.bytes_per_second), info.name):
            results.cases[before:] = [result]
            save(results)
    save(results)
    return results


def bench_and_print(plan: Plan, path: Path | None, quiet: bool) -> None:
    """`vshift bench`: race, write the results to a file if one is given, and print the table.

    Raises:
        TrainingFailed: after the last case, if a contender failed.
        Interrupted: on Ctrl-C; what was timed so far is in the file.
    """

    def save(results: Results) -> None:
        if path is not None:
            results.write(path)

    try:
        results = bench(plan, Reporter(quiet), save)
    except (KeyboardInterrupt, Stopped):
        saved = f"; what was timed until then is in {path}" if path else ""
        raise Interrupted(f"bench: interrupted{saved}") from None
    # Markdown for a file or a pipe; its table is not aligned.
    sys.stdout.write(render(results, "table" if sys.stdout.isatty() else "md"))
    failed = [
        f"{case.network}: {one.contender}"
        for case in results.cases
        for one in case.left_out
        if one.failed
    ]
    if failed:
        raise TrainingFailed(f"{len(failed)} contenders failed: {', '.join(failed)}")


@dataclass(frozen=True)
class _Entry:
    """A contender before it is built."""

    name: str
    build: Callable[[], Runner]
    kind: str | None = None
    log: bool | None = None
    peer: str | None = None


class _CaseRace:
    """One case: its contenders, those that were left out, and their race."""

    def __init__(
        self,
        case: Case,
        plan: Plan,
        device: torch.device,
        steps: int,
        forecast: Forecast,
        budget: Budget,
        reporter: Reporter,
    ) -> None:
        self.case, self.plan, self.device = case, plan, device
        self.forecast, self.budget, self.reporter = forecast, budget, reporter
        self.images = random_images(case.batch, steps, device)
        network = build(make_config(case), classes=CLASSES, channels=CHANNELS, size=SIZE)
        self.layers = trace(network, CHANNELS, SIZE)
        self.parameters = sum(p.numel() for p in network.parameters())
        self.ready: list[tuple[_Entry, Ready]] = []
        self.left_out: list[LeftOut] = []
        self.raced = 0.0  # seconds that the last race took

    def run(self, measured: Peaks, device_name: str) -> Iterator[CaseResult]:
        """Build the contenders, race them and free them.

        There is a result after each contender, from one timing of each so far, and one of the race.
        Peers that compile for minutes join in a second race of all.
        """
        case = self.case
        reference = reference_peaks(device_name)
        peaks = {**({"reference": reference} if reference else {}), "measured": measured}
        bounds = [
            Bound(
                peaks=name, **bounds_of(self.layers, self.parameters, case.batch, peak).model_dump()
            )
            for name, peak in peaks.items()
        ]
        entries = self._entries()
        self.reporter.say(
            f"{case}: {pluralize(len(entries), 'contender')}, {len(self.images.train):,} images an "
            "epoch"
        )
        for slow in (False, True):
            chosen = [entry for entry in entries if (entry.peer in SLOW) is slow]
            before = len(self.ready)
            for entry in sorted(chosen, key=lambda entry: entry.peer is None):  # compiled ones last
                self._prepare(entry, slow)
                if not slow:
                    yield self._result(bounds)
            self.ready.sort(key=lambda one: entries.index(one[0]))
            if len(self.ready) > before:
                self._race()
            if chosen or not slow:
                yield self._result(bounds)
        self.ready.clear()
        _free_memory(self.device)

    def _entries(self) -> list[_Entry]:
        """vshift first, then the peers, those that take longest to compile last."""
        entries = []
        for kind in self.plan.kinds:
            for log in self.plan.logs:
                build = partial(
                    Training, self.case, self.images, log=log, kind=kind,
                    threads=self.plan.threads, say=self.reporter.say,
                )  # fmt: skip
                name = f"vshift {kind}{' + log' if log else ''}"
                entries.append(_Entry(name, build, kind, log))
        for peer in sorted(self.plan.peers, key=[*PEERS].index):
            build_peer = partial(make_peer, peer, self.case, self.images)
            entries.append(_Entry(TITLES[peer], build_peer, peer=peer))
        return entries

    def _prepare(self, entry: _Entry, slow: bool) -> None:
        """Build a contender and warm it up; if it cannot race, note the reason.

        A slow one's set-up is stopped when what is left of the budget is needed to race all again.
        """
        layers = len(self.layers)
        expected, left = self.forecast.seconds(entry.name, layers), self.budget.left()
        left -= self.raced if slow else 0.0
        failed = False
        if left <= expected:
            reason = f"its set-up takes about {expected:.0f} s, and {max(0, left):.0f} s were left"
        else:
            try:
                with time_limit(left if slow else math.inf):
                    one = prepare(entry.name, entry.build, self.device)
                self.forecast.note(entry.name, layers, one.setup_seconds)
                self.reporter.say(f"  {entry.name}: ready after {one.setup_seconds:.1f} s")
                if not slow:
                    time_epoch(one, self.device)
                self.ready.append((entry, one))
                return
            except OutOfTime:
                self.forecast.note(entry.name, layers, left)
                reason = f"its set-up was stopped after {left:.0f} s, no time was left"
            except Exception as error:  # must not end the bench; it is reported
                failed = True
                reason = f"failed: {failure_line(error)}"
        self.reporter.say(f"  {entry.name}: left out, {reason}")
        self.left_out.append(LeftOut(contender=entry.name, reason=reason, failed=failed))

    def _race(self) -> None:
        runners = [one for _, one in self.ready]
        for one in runners:
            one.seconds.clear()

        def report(repeat: int) -> None:
            count = len(self.images.train)
            speeds = " | ".join(f"{count / one.seconds[-1]:,.0f}" for one in runners)
            self.reporter.say(f"  repeat {repeat}: {speeds} images/s")

        began = time.perf_counter()
        race(runners, self.plan.repeats, self.device, self.budget, report)
        self.raced = time.perf_counter() - began

    def _result(self, bounds: list[Bound]) -> CaseResult:
        contenders = []
        for entry, one in self.ready:
            speed = Series.of([len(self.images.train) / seconds for seconds in one.seconds])
            contenders.append(
                Contender(
                    name=entry.name,
                    kind=entry.kind,
                    step=getattr(one.runner, "step", None),
                    peer=entry.peer,
                    log=entry.log,
                    setup_seconds=one.setup_seconds,
                    loss=one.loss if math.isfinite(one.loss) else None,
                    peak_memory=one.peak_memory,
                    seconds=Series.of(one.seconds),
                    images_per_second=speed,
                    shares=bounds[0].shares(speed.median),
                )
            )
        ratios = [
            Ratio(
                contender=ours.name,
                to=peer.name,
                speed=paired(ours.images_per_second, peer.images_per_second),
            )
            for ours in contenders
            for peer in contenders
            if ours.peer is None and peer.peer is not None
        ]
        logging = [
            LoggingCost(
                kind=on.kind,
                overhead=Series.of([value - 1 for value in paired(on.seconds, off.seconds).values]),
            )
            for on in contenders
            for off in contenders
            if on.kind is not None and on.kind == off.kind and on.log and off.log is False
        ]
        return CaseResult(
            network=self.case.network,
            batch=self.case.batch,
            noise=self.case.noise,
            images=len(self.images.train),
            parameters=self.parameters,
            macs=sum(layer.macs for layer in self.layers),
            bounds=bounds,
            contenders=contenders,
            ratios=ratios,
            logging=logging,
            left_out=list(self.left_out),
            clock_mhz=environment.clock_mhz(self.device),
        )


def _free_memory(device: torch.device) -> None:
    """Free networks, graphs and compiled code, so that the next case begins like the first."""
    compiler: Any = sys.modules.get("torch._dynamo")
    if compiler is not None:
        compiler.reset()
    gc.collect()
    if device.type == "cuda":
        # cuBLAS keeps a workspace for each stream it ever ran on.
        clear: Any = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        torch.cuda.empty_cache()
