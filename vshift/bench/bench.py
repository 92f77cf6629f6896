"""`vshift bench`: every case in turn, all its contenders in one process."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vshift.bench import environment
from vshift.bench.bounds import Peaks, bounds_of
from vshift.bench.cases import Case, check_kinds, make_config
from vshift.bench.peaks import measure_peaks, reference_peaks
from vshift.bench.peers import check_peers, load_peers, make_peer
from vshift.bench.race import Budget, Forecast, Ready, Runner, prepare, race
from vshift.bench.results import (
    Bound,
    CaseResult,
    Contender,
    DeviceInfo,
    LeftOut,
    LoggingCost,
    Ratio,
    Results,
    Series,
    paired,
)
from vshift.bench.table import render
from vshift.bench.training import CLASSES, SIZE, Training, random_images
from vshift.config.schema import Hardware
from vshift.data import ImageSet
from vshift.errors import Interrupted, Stopped, TrainingFailed
from vshift.networks import build
from vshift.networks.summary import trace
from vshift.runs.folder import now
from vshift.runs.prepare import git_commit
from vshift.text import pluralize
from vshift.train.device import choose_device, configure
from vshift.train.progress import Reporter

STEPS = {"cpu": 15, "cuda": 200}
CHANNELS = 3
BUSY = 0.5  # busy processes; more of them are worth a warning


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        kinds: of vshift's step; `logs`: each with logging on, off or both; `peers`: by name.
        steps: of an epoch, the unit that is timed; default: 15 on a CPU, 200 on a GPU.
        repeats: timed epochs of each contender, behind one that is not.
        budget: seconds after which nothing new is begun.
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
    scale: float = 1.0  # of the work that the peaks are measured with


@dataclass(frozen=True)
class _Entry:
    """A contender before it is built."""

    name: str
    build: Callable[[], Runner]
    kind: str | None = None
    log: bool | None = None
    peer: str | None = None


@dataclass(frozen=True)
class _Setting:
    """What all cases of a bench share."""

    plan: Plan
    device: torch.device
    info: DeviceInfo
    steps: int
    forecast: Forecast
    reporter: Reporter

    @property
    def bound_peaks(self) -> dict[str, Peaks]:
        """The measured peaks, and before them the reference's where the device has one."""
        reference = reference_peaks(self.info.name)
        measured = Peaks(self.info.flops, self.info.bytes_per_second)
        return {**({"reference": reference} if reference else {}), "measured": measured}


def bench(plan: Plan, reporter: Reporter, save: Callable[[Results], None]) -> Results:
    """Race every case of a plan.

    Args:
        save: called with everything so far after each case, so that a kill loses one case only.

    Raises:
        ConfigError: a kind, peer or device that is not there.
    """
    check_kinds(plan.kinds)
    check_peers(plan.peers)
    if plan.peers:
        load_peers()
    budget = Budget(plan.budget)
    device = choose_device(plan.device)
    configure(Hardware(threads=plan.threads), device)
    load = environment.load_average()
    info = environment.describe_device(device, measure_peaks(device, plan.scale), load)
    steps = plan.steps or STEPS[device.type]
    setting = _Setting(plan, device, info, steps, Forecast(), reporter)
    threads, cases = pluralize(info.threads, "thread"), pluralize(len(plan.cases), "case")
    reporter.say(f"{info.name}, {threads}: {cases}")
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
        steps=steps,
        repeats=plan.repeats,
        budget=plan.budget,
        cases=[],
        not_raced=[],
    )
    for i, case in enumerate(plan.cases):
        if budget.left() <= 0:
            results.not_raced.append(str(case))
            reporter.say(f"{case}: left out, no time is left")
            continue
        results.cases.append(run_case(case, setting, budget.share(len(plan.cases) - i)))
        save(results)
    save(results)
    return results


def bench_and_print(plan: Plan, path: Path | None, quiet: bool) -> None:
    """`vshift bench`: race, keep the results in a file if one is given, and print the table.

    Raises:
        TrainingFailed: after the last case, if a contender failed.
        Interrupted: on Ctrl-C; the cases raced so far are in the file.
    """
    reporter = Reporter(quiet)

    def save(results: Results) -> None:
        if path is not None:
            results.write(path)

    try:
        results = bench(plan, reporter, save)
    except (KeyboardInterrupt, Stopped):
        kept = f"; the cases raced until then are in {path}" if path else ""
        raise Interrupted(f"bench: interrupted{kept}") from None
    sys.stdout.write(render(results))
    failed = [
        f"{case.network}: {one.contender}"
        for case in results.cases
        for one in case.left_out
        if one.failed
    ]
    if failed:
        raise TrainingFailed(f"{len(failed)} contenders failed: {', '.join(failed)}")


def run_case(case: Case, setting: _Setting, budget: Budget) -> CaseResult:
    """Build every contender of a case, race them, and let go of them."""
    network = build(make_config(case), classes=CLASSES, channels=CHANNELS, size=SIZE)
    layers = trace(network, CHANNELS, SIZE)
    parameters = sum(p.numel() for p in network.parameters())
    bounds = [
        Bound(peaks=name, **asdict(bounds_of(layers, parameters, case.batch, peaks)))
        for name, peaks in setting.bound_peaks.items()
    ]
    images = random_images(case.batch, setting.steps, setting.device)
    contenders, left_out = _race(case, images, len(layers), bounds[0], setting, budget)
    clock = environment.clock_mhz(setting.device)
    _forget_everything(setting.device)
    return CaseResult(
        network=case.network,
        batch=case.batch,
        noise=case.noise,
        images=len(images.train),
        parameters=parameters,
        macs=sum(layer.macs for layer in layers),
        bounds=bounds,
        contenders=contenders,
        ratios=list(_ratios(contenders)),
        logging=list(_logging_costs(contenders)),
        left_out=left_out,
        clock_mhz=clock,
    )


def _race(
    case: Case, images: ImageSet, layers: int, bound: Bound, setting: _Setting, budget: Budget
) -> tuple[list[Contender], list[LeftOut]]:
    plan, reporter, count = setting.plan, setting.reporter, len(images.train)
    entries = {entry.name: entry for entry in _entries(case, setting, images)}
    reporter.say(f"{case}: {len(entries)} contenders, {count:,} images an epoch")
    ready: list[Ready] = []
    left_out: list[LeftOut] = []
    for entry in entries.values():
        _get_ready(entry, layers, setting, budget, ready, left_out)

    def say(repeat: int) -> None:
        speeds = " | ".join(f"{count / one.seconds[-1]:,.0f}" for one in ready)
        reporter.say(f"  repeat {repeat}: {speeds} images/s")

    if ready:
        race(ready, plan.repeats, setting.device, budget, say)
    return [_contender(entries[one.name], one, count, bound) for one in ready], left_out


def _entries(case: Case, setting: _Setting, images: ImageSet) -> Iterator[_Entry]:
    """vshift first and the slowest to compile last: a budget then leaves out what it should."""

    plan, say = setting.plan, setting.reporter.say

    def ours(kind: str, log: bool) -> Callable[[], Runner]:
        return lambda: Training(case, images, log=log, kind=kind, threads=plan.threads, say=say)

    def theirs(name: str) -> Callable[[], Runner]:
        return lambda: make_peer(name, case, images)

    for kind in plan.kinds:
        for log in plan.logs:
            yield _Entry(f"vshift {kind}{' + log' if log else ''}", ours(kind, log), kind, log)
    for name in plan.peers:
        yield _Entry(load_peers().TITLES[name], theirs(name), peer=name)


def _get_ready(
    entry: _Entry,
    layers: int,
    setting: _Setting,
    budget: Budget,
    ready: list[Ready],
    left_out: list[LeftOut],
) -> None:
    """Build and warm up a contender, or say why not."""
    expected, left = setting.forecast.seconds(entry.name, layers), budget.left()
    if left <= expected:
        reason = f"its set-up takes about {expected:.0f} s, and {max(0, left):.0f} s were left"
        _leave_out(entry, reason, False, setting, left_out)
        return
    try:
        one = prepare(entry.name, entry.build, setting.device)
    except Exception as error:  # a contender that fails must not end the bench; it is reported
        lines = str(error).strip().splitlines() or [""]
        reason = f"failed: {type(error).__name__}: {lines[0][:300]}"
        _leave_out(entry, reason, True, setting, left_out)
        return
    setting.forecast.note(entry.name, layers, one.setup_seconds)
    setting.reporter.say(f"  {entry.name}: ready after {one.setup_seconds:.1f} s")
    ready.append(one)


def _leave_out(
    entry: _Entry, reason: str, failed: bool, setting: _Setting, left_out: list[LeftOut]
) -> None:
    setting.reporter.say(f"  {entry.name}: left out, {reason}")
    left_out.append(LeftOut(contender=entry.name, reason=reason, failed=failed))


def _contender(entry: _Entry, one: Ready, images: int, bound: Bound) -> Contender:
    speed = Series.of([images / seconds for seconds in one.seconds])
    return Contender(
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
        shares=bound.shares(speed.median),
    )


def _ratios(contenders: Sequence[Contender]) -> Iterator[Ratio]:
    """Each of vshift's contenders over each peer."""
    for ours in contenders:
        for peer in contenders:
            if ours.peer is None and peer.peer is not None:
                speed = paired(ours.images_per_second, peer.images_per_second)
                yield Ratio(contender=ours.name, to=peer.name, speed=speed)


def _logging_costs(contenders: Sequence[Contender]) -> Iterator[LoggingCost]:
    for on in contenders:
        for off in contenders:
            if on.kind == off.kind and on.log is True and off.log is False:
                assert on.kind is not None
                more = [value - 1 for value in paired(on.seconds, off.seconds).values]
                yield LoggingCost(kind=on.kind, overhead=Series.of(more))


def _forget_everything(device: torch.device) -> None:
    """Networks, graphs and compiled code: the next case begins like the first."""
    compiler: Any = sys.modules.get("torch._dynamo")
    if compiler is not None:
        compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
