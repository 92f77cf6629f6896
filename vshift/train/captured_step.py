"""Whole training steps in one CUDA graph, captured once and checked before they are used."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vshift.data import Stream
from vshift.text import pluralize
from vshift.train.compiled_step import CannotCompile, CompiledStep, reason_of
from vshift.train.context import TrainingContext
from vshift.train.loop import TrainStep
from vshift.train.optimizer import FixedStateOptimizer

STEPS_PER_GRAPH = 8  # enough that the host never keeps the device waiting


class CapturedStep(CompiledStep):
    """Whole steps in one CUDA graph: from the gather of the images to the logging sums.

    Everything, also which step it is, is read from tensors on the device. An epoch's plan (order,
    crops, flips) and learning rates are sent once. `advance` is a step as the device sees it; it is
    captured, STEPS_PER_GRAPH and one of it for full batches and one for the last, smaller batch,
    and replayed, so that a step costs the host nothing.

    Raises:
        CannotCompile: the optimizer's state is not in tensors that stay in their place.
    """

    name = "captured"

    def __init__(self, context: TrainingContext, compile: bool = True) -> None:
        super().__init__(context)
        optimizer = context.optimizer
        if not isinstance(optimizer, FixedStateOptimizer):
            name = context.config.optimizer.name
            raise CannotCompile(f"the optimizer must be sgd or adamw, and it is {name}")
        self._optimizer, self._compile = optimizer, compile
        self._graphs: dict[tuple[int, int], Any] = {}
        self._stream: Stream | None = None
        on_cuda = context.device.type == "cuda"
        self._generator = (
            torch.cuda.default_generators[torch.cuda.current_device()]
            if on_cuda
            else torch.default_generator
        )
        self._pool: Any = torch.cuda.graph_pool_handle() if on_cuda else None
        # Whatever runs before a capture runs on the stream of the capture: autograd and cuBLAS
        # cache the stream on which a weight was first used, and a graph must not wait for another.
        self._side: Any = _capture_stream() if on_cuda else None

    def epoch(self, seed: int, rates: Sequence[float], first: int = 0) -> Iterator[int]:
        """As `TrainStep.epoch`, several steps at a time."""
        stream = self.context.stream
        self._send_plan(seed, rates, first)
        step, size = first, stream.batch_size
        while step < stream.steps:
            left = len(stream.part) - step * size
            count = STEPS_PER_GRAPH if left >= STEPS_PER_GRAPH * size else 1
            key = count, min(size, left)
            if key not in self._graphs:
                self._graphs[key] = self._captured_anew(*key)
            graph = self._graphs[key]
            if graph is not None:
                graph.replay()
            else:
                for _ in range(count):
                    self.advance(key[1])
            step += count
            yield step

    def forget(self) -> None:
        self._graphs = {}  # captured again when they are needed

    def advance(self, size: int) -> None:
        """The next step, with a batch of `size` images."""
        places = self._first + torch.arange(size, device=self._first.device)
        images, labels = self.context.stream.batch(self._plan.at(places))
        self._rate.copy_(self._rates.index_select(0, self._now)[0])
        self(images, labels)
        self._first += size
        self._now += 1

    def prepare(self) -> None:
        """Compile, and capture and check every graph of an epoch. No state changes.

        Raises:
            CannotCompile: the compiler's or CUDA's reason, or what a graph does otherwise than the
                eager step.
        """
        stream = self.context.stream
        self.context.model.train()  # a graph keeps the mode that it was captured in
        if self._compile:
            with self._aside():
                self.compile(*next(stream.epoch(0)))
        self._send_plan(0, [0.0] * stream.steps, 0)
        full, count = stream.batch_size, len(stream.part)
        for size in sorted({min(full, count), count % full} - {0}, reverse=True):
            self._graphs[1, size] = self._capture(1, size)
        if count >= STEPS_PER_GRAPH * full:
            self._graphs[STEPS_PER_GRAPH, full] = self._capture(STEPS_PER_GRAPH, full)

    def _send_plan(self, seed: int, rates: Sequence[float], first: int) -> None:
        """Send an epoch's plan and rates into the tensors that the graphs read."""
        stream = self.context.stream
        plan = stream.plan(seed)
        device = stream.part.images.device
        if stream is not self._stream:
            self._stream, self._graphs = stream, {}
            stream.padded()
            self._plan = plan.map(lambda tensor: torch.empty_like(tensor, device=device))
            self._rates = torch.zeros(len(rates), device=device)
            self._rate = torch.zeros((), device=device)
            self._first = torch.zeros(1, dtype=torch.int64, device=device)
            self._now = torch.zeros(1, dtype=torch.int64, device=device)
        for own, sent in zip((*self._plan, self._rates), (*plan, torch.tensor(rates)), strict=True):
            if own is None or sent is None:  # what this stream does not draw
                continue
            if own.is_cuda:  # from pinned memory nothing waits for the copy
                sent = sent.pin_memory()
            own.copy_(sent, non_blocking=True)
        self._first.fill_(first * stream.batch_size)
        self._now.fill_(first)
        for group in self.context.optimizer.param_groups:  # a restored state brings its own
            group["lr"] = self._rate

    def _capture(self, count: int, size: int) -> Any:
        """A graph of `count` steps, captured and checked. No state changes.

        Raises:
            CannotCompile: with PyTorch's reason, or what the graph does otherwise than it should.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # One ordinary step fills caches and chooses kernels.
            with self._restored(), self._aside():
                self.advance(size)
            self.context.optimizer.zero_grad()
            with self._restored(), _capturing(graph, self._pool, self._side):
                for _ in range(count):
                    self.advance(size)
        except Exception as error:  # whatever CUDA raises, there is a step without it
            raise CannotCompile(reason_of(error)) from error
        self._check(graph, count, size)
        return graph

    def _captured_anew(self, count: int, size: int) -> Any:
        """A graph for a network that has changed since `prepare`; None, with a line, if there is
        none: then the steps run uncaptured."""
        try:
            return self._capture(count, size)
        except CannotCompile as reason:
            self.context.say(f"no captured step from here on: {reason}; using a slower one")
            return None

    def _check(self, graph: Any, count: int, size: int) -> None:
        """Refuse a graph that does not do what the eager step does.

        Its steps are taken three times from the same state, with another plan, other learning rates
        and other random numbers than in the capture: twice by `TrainStep.epoch`, for what rounding
        may change, and by the graph. Every tensor that a step changes is compared.

        Raises:
            CannotCompile: with the name of what differs.
        """
        stream = self.context.stream
        last = len(stream.part) // size if size == stream.batch_size else stream.steps
        first = last - count
        rates = [0.01 / (1 + step % 2) for step in range(stream.steps)]

        def eager() -> None:
            for _ in islice(TrainStep.epoch(self, 1, rates, first), count):
                pass
            self._first += count * size
            self._now += count
            self._rate.fill_(rates[last - 1])

        found = []
        for steps in (eager, eager, graph.replay):
            with self._restored(), self._aside():
                self._send_plan(1, rates, first)
                self._generator.manual_seed(1)
                steps()
                found.append({name: t.detach().clone() for name, t in self._state().items()})
                found[-1]["the random generator"] = self._generator.get_state()
        self.context.optimizer.zero_grad()
        before = {**self._state(), "the random generator": self._generator.get_state()}
        one, other, replayed = found
        for name, tensor in one.items():
            off = _distance(replayed[name], tensor)
            changed = _distance(before[name], tensor)
            rounding = 0.25 * changed + 10 * _distance(other[name], tensor)
            if off and not off <= (rounding if tensor.is_floating_point() else 0):
                raise CannotCompile(
                    f"{pluralize(count, 'captured step')} with {size} images "
                    f"leave {name} at a distance of {off:.3g} from the eager step's, which changes "
                    f"it by {changed:.3g}"
                )

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of the captures, after and before what the present stream does."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._side):
                yield
        finally:
            torch.cuda.current_stream().wait_stream(self._side)

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that a step changes, by a name for messages."""
        context = self.context
        kept = {"optimizer": self._optimizer.tensors(), "metrics": context.metrics.tensors()}
        if context.layer_log is not None:
            kept["layer log"] = context.layer_log.tensors()
        if context.average is not None:
            kept["average"] = context.average.tensors()
        return {
            **dict(context.model.named_parameters()),
            **dict(context.model.named_buffers()),
            **{f"{part} {i}": t for part, tensors in kept.items() for i, t in enumerate(tensors)},
            "the first image": self._first,
            "the step number": self._now,
            "the learning rate": self._rate,
        }

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """On exit all that a step changes and reads is as it was, the generator too."""
        read = [tensor for tensor in (*self._plan, self._rates) if tensor is not None]
        before = [(t, t.detach().clone()) for t in (*self._state().values(), *read)]
        random = self._generator.get_state()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, old in before:
                    tensor.copy_(old)
            self._generator.set_state(random)


@torch.no_grad()
def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference; NaN is as far from NaN as 1 from 1."""
    equal = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(equal, 0.0, a.double() - b.double()).norm())


@contextmanager
def _capturing(graph: Any, pool: Any, stream: Any) -> Iterator[None]:
    """`torch.cuda.graph` without Python's collector, and undone where it fails.

    The collector might free an older graph, which is forbidden in a capture. After a failed one
    PyTorch (2.11) leaves its stream the present one, and the generator in capturing mode, where no
    noise can be drawn, until another capture ends.
    """
    present = None if stream is None else torch.cuda.current_stream()
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            yield
    except BaseException:
        if present is not None:
            torch.cuda.set_stream(present)
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
                torch.zeros((), device="cuda")
        raise
    finally:
        if collecting:
            gc.enable()


def _capture_stream() -> torch.cuda.Stream:
    """The present stream, or one for the whole process if that is CUDA's default one, which cannot
    be captured.

    cuBLAS keeps a workspace (32 MiB on an H100) for each stream that it ran on, and a graph uses
    that of the stream of its capture: graphs that run at the same time need streams of their own.
    """
    present = torch.cuda.current_stream()
    is_default = present == torch.cuda.default_stream()
    return _process_stream(present.device_index) if is_default else present


@cache
def _process_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
