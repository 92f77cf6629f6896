"""Ways to train several seeds of one case, ready to race; `together.py` says what they are."""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from benchmarks.cases import Case, make_config
from benchmarks.race import Runner
from benchmarks.results import IN_TURN
from benchmarks.stack import stacked_context
from benchmarks.training import Training, random_images
from vshift.config.schema import Hardware
from vshift.data import ImageSet
from vshift.errors import VShiftError
from vshift.train.captured_step import CapturedStep
from vshift.train.compiled_step import CannotCompile
from vshift.train.context import TrainingContext, build_model
from vshift.train.device import configure
from vshift.train.loop import TrainStep


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Work:
    """`count` seeds of a case, each over all images once per epoch."""

    case: Case
    count: int
    steps: int
    device: torch.device
    threads: int

    def images(self) -> ImageSet:
        return random_images(self.case.batch, self.steps, self.device)

    def training(self, images: ImageSet, seed: int, kind: str = "auto") -> Training:
        return Training(self.case, images, log=True, kind=kind, seed=seed, say=say)


class InTurn:
    """Every seed's epoch, one after the other."""

    def __init__(self, work: Work) -> None:
        images = work.images()
        self.trainings = [work.training(images, seed) for seed in range(work.count)]
        self.step = self.trainings[0].step

    def epoch(self) -> float:
        return _mean([training.epoch() for training in self.trainings])


class Streams:
    """Every seed's captured step on a CUDA stream of its own, some steps of each in turn.

    A graph's random numbers come from the process's one generator, whose place in its sequence all
    replays share on the device: good enough for a timing, and with noise not for a result.
    """

    step = "captured"

    def __init__(self, work: Work) -> None:
        images = work.images()
        self.trainings, self.streams = [], []
        for seed in range(work.count):
            stream = torch.cuda.Stream(work.device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):  # also captured there: cuBLAS has a workspace for each
                training = work.training(images, seed, "captured")
            if training.step != "captured":
                raise VShiftError(f"needs a captured step, and {training.step} is what works")
            self.trainings.append(training)
            self.streams.append(stream)

    def epoch(self) -> float:
        main = torch.cuda.current_stream()
        running = []
        for training, stream in zip(self.trainings, self.streams, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                running.append((training.steps(), stream))
        while running:
            running = [one for one in running if _went_on(*one)]
        for stream in self.streams:
            main.wait_stream(stream)
        return _mean([training.end() for training in self.trainings])


def _went_on(steps: Iterator[int], stream: torch.cuda.Stream) -> bool:
    with torch.cuda.stream(stream):
        return next(steps, None) is not None


class Stacked:
    """One step for all seeds: captured on CUDA, eager elsewhere."""

    def __init__(self, work: Work) -> None:
        images, case = work.images(), work.case
        if case.noise == "dropout" and work.device.type == "cpu":
            raise VShiftError("vmap cannot draw the 16 bits a value that dropout takes on a CPU")
        config = make_config(case, hardware={"device": work.device.type})
        models = [build_model(config, images, seed).to(work.device) for seed in range(work.count)]
        models = [model.to(memory_format=torch.channels_last) for model in models]
        self.context = stacked_context(TrainingContext(config, 0, images), models)
        captured = _captured(self.context) if work.device.type == "cuda" else None
        self._step = captured or TrainStep(self.context)
        self.step, self._epochs, self._count = self._step.name, 0, work.count

    def epoch(self) -> float:
        self._epochs += 1
        for _ in self._step.epoch(self._epochs, self.context.rates):
            pass
        metrics = self.context.metrics.compute_and_reset()
        if self.context.layer_log is not None:
            self.context.layer_log.compute_and_reset()
        return metrics.loss / self._count


def _captured(context: TrainingContext) -> CapturedStep | None:
    """A captured step, compiled if the compiler takes a stack."""
    for compile in (True, False):
        try:
            step = CapturedStep(context, compile=compile)
            step.prepare()
            return step
        except CannotCompile as reason:
            say(f"stacked, {'' if compile else 'not '}compiled: {reason}")
    return None


class Processes:
    """One process per seed; an epoch ends with the slowest."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._children = []
        for seed in range(work.count):
            ours, theirs = context.Pipe()
            child = context.Process(target=_train, args=(work, seed, theirs), daemon=True)
            child.start()
            self._pipes.append(ours)
            self._children.append(child)
        self.step = {pipe.recv() for pipe in self._pipes}.pop()

    def epoch(self) -> float:
        for pipe in self._pipes:
            pipe.send(True)
        return _mean([pipe.recv() for pipe in self._pipes])

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(False)
        for child in self._children:
            child.join()


def _train(work: Work, seed: int, pipe: Connection) -> None:
    """A child process: trains an epoch per message, with its share of the threads."""
    configure(Hardware(threads=max(1, work.threads // work.count)), work.device)
    training = work.training(work.images(), seed)
    pipe.send(training.step)
    while pipe.recv():
        pipe.send(training.epoch())


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses)


CONTENDERS: dict[str, Callable[[Work], Runner]] = {
    IN_TURN: InTurn,
    "processes": Processes,
    "streams": Streams,
    "stacked": Stacked,
}
