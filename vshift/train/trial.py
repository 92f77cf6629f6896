"""What `hardware.precision: auto` becomes: a trial of a few steps, once per processor and network.

bf16 is several times as fast as float32 on a processor with instructions for it, and slower on one
without. Which one it is shows in a few real steps, whose times are kept in the cache folder.

The arms of a study must not differ in precision because they differ in noise or norm. The trial
therefore trains the config's network without its noise and with plain batch norm, and is kept under
what is left: every arm finds the same answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from vshift import kernels
from vshift.cache import cache_folder, keep, locked
from vshift.config import block
from vshift.config.identity import short_references
from vshift.config.measure import Measure, Recalibration
from vshift.config.networks import OwnNetwork
from vshift.config.norm import BatchNorm
from vshift.config.schema import Config, Hardware
from vshift.config.training import SGD, Constant
from vshift.data import ImageSet, Part
from vshift.errors import ConfigError
from vshift.text import format_integer, join_words
from vshift.train.checkpointer import random_state, set_random_state
from vshift.train.context import TrainingContext
from vshift.train.fast_steps import make_train_step
from vshift.train.loop import TrainStep

PINNED = "VSHIFT_PRECISION"  # the environment's answer instead of a trial's
PRECISIONS = ("bf16", "float32")  # the default first
KINDS = ("auto", "eager")  # compiling takes longer than a trial may
MARGIN = 1.05  # by which float32 must beat bf16: a near tie must not flip
ROUNDS, ENOUGH = 7, 5  # timed steps of each kind, and for how many there must be time
FIRST, GROWTH = 4, 8.0  # images of the first steps, and the largest factor to more of them
SECONDS = 6.0  # of a trial, without building its networks
WAIT = 60.0  # seconds for other processes' trials, of which there is one at a time

Work = Callable[[int], None]  # a training step on this many images
Clock = Callable[[], float]


class Trial(BaseModel):
    """The times of a trial's steps, as the cache holds them.

    Attributes:
        images: per step.
        seconds: of each round's step, by precision and kind of step.
        steps: the step that each kind stands for, by kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    seconds: dict[str, list[float]]
    steps: dict[str, str]

    def faster(self, kind: str) -> str:
        """The second precision if it beats the first by MARGIN, in the median over rounds."""
        one, two = (self.seconds.get(f"{precision} {kind}", []) for precision in PRECISIONS)
        ratios = [a / b for a, b in zip(one, two, strict=False)]
        return PRECISIONS[bool(ratios) and median(ratios) > MARGIN]

    def choose(self, hardware: Hardware) -> Hardware:
        """The settings with the faster precision in place of `auto`.

        It is the faster one with the step that runs by default, or with the eager step where the
        config asks for that one or for the compiled one, which is not tried. The step stays what it
        is: its kernels are nowhere slower than PyTorch's operations (benchmarks/README.md), each
        kind of step draws other numbers, and the arms of a study are not to differ in it.
        """
        kind = "eager" if hardware.step in ("eager", "compiled") else "auto"
        return hardware.model_copy(update={"precision": self.faster(kind)})

    @property
    def speeds(self) -> dict[str, float]:
        """Images per second, the median over rounds, by precision and step: `bf16 fused`."""
        found = {}
        for setting, seconds in self.seconds.items():
            precision, kind = setting.split()
            found[f"{precision} {self.steps[kind]}"] = self.images / median(seconds)
        return found


@dataclass(frozen=True)
class Choice:
    """How a run runs: its config's hardware section without `auto` as its precision.

    Attributes:
        trial: the one that decided; None where none was needed.
    """

    hardware: Hardware
    trial: Trial | None = None

    @property
    def step(self) -> str:
        """The step that the trial took for the hardware's kind."""
        step = self.hardware.step
        return self.trial.steps.get(step, step) if self.trial else step


def choose(
    config: Config, images: ImageSet, say: Callable[[str], None], anew: bool = False
) -> Choice:
    """What `hardware.precision: auto` becomes for a config on this machine.

    Nothing that a run depends on changes: the trial has networks of its own, and the generators
    are put back.

    Args:
        images: on the device of the run.
        say: called with what a trial found, or why it failed.
        anew: try again, whatever the cache and the environment say.

    Raises:
        ConfigError: the environment names a precision that does not exist.
    """
    hardware, device = config.hardware, images.train.images.device
    if hardware.precision != "auto" and not anew:
        return Choice(hardware)
    default = Choice(hardware.model_copy(update={"precision": _pinned() or PRECISIONS[0]}))
    if device.type != "cpu" or (_pinned() and not anew):
        return default
    subject, is_new = _subject(config), False
    path = _path(subject, images)
    trial = None if anew else _read(path)
    with ExitStack() as stack:
        if trial is None:
            with suppress(OSError):  # without a cache every process tries for itself
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path.parent, WAIT))
            trial = None if anew else _read(path)  # of a process that was faster
        if trial is None:
            try:
                trial = _try(subject, images)
            except Exception as error:  # whatever fails here, there is a default
                first = (str(error).strip().splitlines() or ["no message"])[0]
                say(
                    "warning: hardware.precision: auto: the trial failed, "
                    f"{type(error).__name__}: {first}; using {default.hardware.precision}"
                )
                return default
            keep(path, trial.model_dump_json())
            is_new = True
    choice = Choice(trial.choose(hardware), trial)
    if is_new:
        say(_in_words(trial, choice))
    return choice


def _pinned() -> str | None:
    precision = os.environ.get(PINNED)
    if precision and precision not in PRECISIONS:
        raise ConfigError(f"{PINNED}={precision}: allowed: {join_words(PRECISIONS, 'or')}")
    return precision or None


def _in_words(trial: Trial, choice: Choice) -> str:
    speeds = sorted(trial.speeds.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{setting} {format_integer(speed)}" for setting, speed in speeds)
    return (
        f"note: hardware.precision: auto: {choice.hardware.precision}, {choice.step}; "
        f"images/s in a trial, kept for this processor: {listed}"
    )


# ---- what is tried


def _subject(config: Config) -> Config:
    """The config without what the arms of a study differ in, and without what a step leaves out."""
    network = config.network
    update: dict[str, object] = {"noise": None}
    if not isinstance(network, OwnNetwork) and network.block is not None:
        words = [word for word in block.parse(network.block) if not block.is_noise(word)]
        update["block"] = " ".join(words)
    return config.model_copy(
        update={
            "network": network.model_copy(update=update),
            "norm": BatchNorm(kind="batch"),
            "optimizer": SGD(learning_rate=0.01),
            "schedule": Constant(name="constant"),
            "epochs": 1,
            "average": None,
            "measure": Measure(every=0),
            "recalibration": Recalibration(methods=[]),
        }
    )


def _path(subject: Config, images: ImageSet) -> Path:
    """The cache's file for a subject on this machine, as it is and as PyTorch may use it."""
    words = [
        *kernels.machine(),
        torch.__version__,
        json.dumps(short_references(subject.network.model_dump(mode="json")), sort_keys=True),
        f"{subject.data.batch_size} {images.channels} {images.size} {images.outputs}",
        f"{torch.get_num_threads()}",
    ]
    name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    return cache_folder() / "trials" / f"{name}.json"


def _read(path: Path) -> Trial | None:
    """A kept trial; None where there is none or it is damaged."""
    try:
        return Trial.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _try(subject: Config, images: ImageSet) -> Trial:
    size = subject.data.batch_size
    part = images.train
    mirrored = None if part.mirrored is None else part.mirrored[:size]
    few = replace(images, train=Part(part.images[:size], part.labels[:size], mirrored))
    before = random_state(part.images.device)
    try:
        steps = {
            (precision, kind): _step(subject, few, precision, kind)
            for kind in KINDS
            for precision in PRECISIONS
        }
        names = {kind: steps[PRECISIONS[0], kind].name for kind in KINDS}
        if names["auto"] == names["eager"]:  # no kernels here
            steps = {setting: step for setting, step in steps.items() if setting[1] == "auto"}
        batch = next(next(iter(steps.values())).context.stream.epoch(0))

        def work(step: TrainStep) -> Work:
            return lambda count: step(*(tensor[:count] for tensor in batch))

        work_of = {" ".join(setting): work(step) for setting, step in steps.items()}
        count, seconds = measure(work_of, len(batch[1]))
    finally:
        set_random_state(before)
    return Trial(images=count, seconds=seconds, steps=names)


def _step(subject: Config, images: ImageSet, precision: str, kind: str) -> TrainStep:
    hardware = subject.hardware.model_copy(update={"precision": precision, "step": kind})
    context = TrainingContext(subject.model_copy(update={"hardware": hardware}), 0, images)
    context.model.train()
    return make_train_step(kind, context, lambda text: None)


# ---- the clock


def measure(
    work: dict[str, Work],
    batch: int,
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter,
) -> tuple[int, dict[str, list[float]]]:
    """Time steps in turn, forwards and backwards, so that what else runs slows down all alike.

    Steps take as many images as leave time for a few rounds, at most a batch. Where the first steps
    use up half of the time already, only the default kind is measured in each precision, and where
    they use up all of it, they are the only ones.

    Returns:
        The images per step, and the seconds of each step.
    """
    end = clock() + seconds
    count = min(FIRST, batch)
    steps: dict[str, Work] = {}
    taken: dict[str, float] = {}
    for name, step in work.items():
        if len(steps) == len(PRECISIONS) and clock() > end - seconds / 2:
            break
        steps[name] = step
        taken |= _timed({name: step}, count, clock)
    while count < batch:
        factor = min((end - clock()) / (ENOUGH * sum(taken.values())), GROWTH)
        if factor < 2:
            break
        count = min(batch, int(count * factor))
        taken = _timed(steps, count, clock)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(ROUNDS):
        if clock() > end:
            return count, found if repeat else {name: [time] for name, time in taken.items()}
        order = list(steps)[:: -1 if repeat % 2 else 1]
        for name in order:
            found[name].append(_seconds(steps[name], count, clock))
    return count, found


def _timed(steps: dict[str, Work], count: int, clock: Clock) -> dict[str, float]:
    """The seconds of a step of each, after one that chooses kernels for its shapes."""
    times = {}
    for name, step in steps.items():
        step(count)
        times[name] = _seconds(step, count, clock)
    return times


def _seconds(step: Work, count: int, clock: Clock) -> float:
    began = clock()
    step(count)
    return clock() - began
