"""`vshift bench`: race every case, all its contenders in one process.

In reading order: `cases` (what is raced), `training` (vshift's contender), `peers` and
`plain_network` (the other loops), `race` (turns and the clock), `bounds` (how fast it could be),
`environment` (the device), `results` (the JSON file), `render` (tables), and this module, which
calls them all.
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
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
from benchmarks.commands import time_command
from benchmarks.environment import measure_peaks, reference_peaks
from benchmarks.peers import OWN_PRECISION, PEERS, TITLES
from benchmarks.plain_network import best_precision, make_peer
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
    read_results,
    slug,
)
from benchmarks.training import CLASSES, SIZE, Training, random_images
from vshift.config.schema import Hardware
from vshift.errors import ConfigError, Interrupted, Stopped, TrainingFailed, VShiftError
from vshift.networks.build import build
from vshift.networks.summary import trace
from vshift.runs.folder import now
from vshift.runs.prepare import git_commit
from vshift.tables import width_of
from vshift.text import pluralize
from vshift.train.device import choose_device, configure
from vshift.train.progress import Reporter

STEPS = {"cpu": 15, "cuda": 200}
CHANNELS = 3
SLOW = ("airbench",)  # peers whose compiler may take minutes
BUSY = 0.5  # cores; with more of them kept busy by other programs, timings measure those too


@dataclass(frozen=True)
class Plan:
    """What to race.

    Attributes:
        kinds: of vshift's step; `logs`: each with logging on, off or both; `peers`: by name.
        steps: per epoch, the unit that is timed; default: 15 on a CPU, 200 on a GPU.
        repeats: timed epochs per contender, after one that is not timed.
        budget: seconds after which nothing new is started.
        scale: of the work that measures the device's peaks.
        force: also on a busy machine.
        best_only: leave out peers in their own precision where the other one is faster; not (a).
        commands: configs whose `vshift train` is timed as a whole, after the cases.
        resume: an earlier bench's file, whose whole cases stay and are not raced again; or its
            folder.
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
    force: bool = False
    best_only: bool = False
    commands: Sequence[Path] = ()
    resume: Path | None = None


def bench(plan: Plan, reporter: Reporter, save: Callable[[Results], None]) -> Results:
    """Race every case of a plan.

    Args:
        save: called with everything so far after each contender and each race, so that a kill loses
            little.

    Raises:
        ConfigError: an unknown kind or peer, or a device that is not available.
        VShiftError: the machine is busy.
    """
    check_known("--kinds", plan.kinds, KINDS)
    check_known("--peer", plan.peers, PEERS)
    device = choose_device(plan.device)
    configure(Hardware(threads=plan.threads), device)
    load = environment.busy_cores()
    if load is not None and load > BUSY:
        busy = f"other programs keep {load:.1f} cores busy: timings would measure them too"
        if device.type == "cpu" and not plan.force:
            raise VShiftError(f"bench: {busy}; close them, or add --force")
        reporter.say(busy)
    budget = Budget(plan.budget)
    info = environment.describe_device(device, measure_peaks(device, plan.scale), load)
    reporter.say(
        f"{info.name}, {pluralize(info.threads, 'thread')}: {pluralize(len(plan.cases), 'case')}"
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
    if plan.resume is not None and results.path(plan.resume).exists():
        results = _continued(read_results(results.path(plan.resume)), results)
    forecast = Forecast()
    for i, case in enumerate(plan.cases):
        if _is_whole(results, case, plan):
            reporter.say(f"{case}: is in the file")
            continue
        if budget.left() <= 0:
            results.not_raced.append(str(case))
            reporter.say(f"{case}: left out, no time is left")
            continue
        share = budget.share(len(plan.cases) - i)
        race_of = _CaseRace(case, plan, device, results.steps, forecast, share, reporter)
        peaks = Peaks(info.flops, info.bytes_per_second, info.flops_precision)
        for result in race_of.run(peaks, info.name):
            same = (one for one in results.cases if _work_of(one) == case)
            place = next((results.cases.index(one) for one in same), len(results.cases))
            results.cases[place : place + 1] = [result]
            save(results)
    for path in plan.commands:
        if budget.left() <= 0:
            results.not_raced.append(f"vshift train {path}")
            continue
        for command in time_command(path, plan.repeats, plan.threads, device, budget, reporter):
            results.commands[:] = [one for one in results.commands if one.name != command.name]
            results.commands.append(command)
            save(results)
    save(results)
    return results


def _work_of(result: CaseResult) -> Case:
    return Case(result.network, result.batch, result.noise)


def _continued(earlier: Results, now: Results) -> Results:
    """The present bench with the cases and commands of an earlier one on the same machine.

    Raises:
        VShiftError: it was of another device, other versions or other steps.
    """
    for what, a, b in (
        ("device", slug(earlier.device), slug(now.device)),
        ("versions", earlier.versions, now.versions),
        ("steps", earlier.steps, now.steps),
    ):
        if a != b:
            raise VShiftError(f"--resume: the file is of other {what}: {a}, not {b}")
    return now.model_copy(update={"cases": earlier.cases, "commands": earlier.commands})


def _is_whole(results: Results, case: Case, plan: Plan) -> bool:
    """Whether a case has every timing of every contender that the plan asks for."""
    found = next((one for one in results.cases if _work_of(one) == case), None)
    if found is None or any("time was left" in one.reason for one in found.left_out):
        return False
    raced = {(one.kind, one.log) if one.peer is None else one.peer for one in found.contenders}
    wanted = {*plan.peers, *((kind, log) for kind in plan.kinds for log in plan.logs)}
    timings = (len(one.seconds.values) for one in found.contenders)
    return wanted <= raced and all(count >= plan.repeats for count in timings)


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
    sys.stdout.write(render(results, width_of(sys.stdout)))
    failed = [
        f"{case.network}: {one.contender}"
        for case in results.cases
        for one in case.left_out
        if one.failed
    ]
    if failed:
        raise TrainingFailed(f"{len(failed)} contenders failed: {', '.join(failed)}")


def bench_each(names: Sequence[str], words: Sequence[str], path: Path | None) -> None:
    """`vshift bench --isa …`: the same bench capped to each instruction set, each in a process.

    Args:
        words: of the command line, without `--isa`.
        path: of `--json`.

    Raises:
        ConfigError: a set that does not exist, or that this processor lacks.
        TrainingFailed: after the last one, if one of them failed.
    """
    check_known("--isa", names, environment.CAPS)
    if lacking := [name for name in names if not environment.has_isa(name)]:
        raise ConfigError(f"--isa {lacking[0]}: this processor does not have these instructions")
    if path is not None and len(names) > 1 and not path.is_dir():
        raise ConfigError(f"--json {path}: with several --isa, a folder: a file for each of them")
    failed = []
    for name in names:
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, "-m", "vshift", *words],
            env={**os.environ, **environment.CAPS[name]},
            check=False,
        )
        failed += [name] if done.returncode else []
    if failed:
        raise TrainingFailed(f"--isa {', '.join(failed)}: the bench failed, as printed above")


@dataclass(frozen=True)
class _Entry:
    """A contender before it is built."""

    name: str
    build: Callable[[], Runner]
    kind: str | None = None
    log: bool | None = None
    peer: str | None = None
    precision: str | None = None


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
        best = best_precision(self.case, self.images) if self.plan.peers else ""
        for peer in sorted(self.plan.peers, key=[*PEERS].index):
            own = best if self.plan.best_only and peer != "plain" else OWN_PRECISION[peer]
            for precision in dict.fromkeys((own, best)):
                build_peer = partial(make_peer, peer, self.case, self.images, precision)
                title = TITLES[peer].format(precision)
                entries.append(_Entry(title, build_peer, peer=peer, precision=precision))
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
            known = f"its set-up takes about {expected:.0f} s, and " if expected else ""
            reason = f"{known}{max(0, left):.0f} s of the budget were left"
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
                    precision=getattr(one.runner, "precision", None) or entry.precision,
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
            if not ours.is_rival and peer.is_rival
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
