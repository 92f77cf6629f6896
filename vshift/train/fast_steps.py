"""Faster ways to do what `TrainStep` does: CPU kernels, `torch.compile`, CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vshift.config.networks import OwnNetwork
from vshift.config.own import own_parts
from vshift.data import Stream
from vshift.errors import ConfigError
from vshift.kernels import KernelsMissing, fuse
from vshift.networks.generators import outside_state, set_outside_state
from vshift.networks.norm import BatchRenorm
from vshift.networks.own import needs_contiguous
from vshift.shift.modes import restoring_state
from vshift.train.context import TrainingContext
from vshift.train.loop import TrainStep
from vshift.train.optimizer import FixedStateOptimizer

STEPS_PER_GRAPH = 8  # enough that the host never keeps the device waiting


class CannotCompile(Exception):
    """Why a faster step does not work here, in a line."""


class CannotFuse(Exception):
    """Why the kernels do not fit a network, in a line."""


class FusedStep(TrainStep):
    """The eager step with noise and batch norm by the kernels of `vshift.kernels`."""

    name = "fused"

    def prepare(self) -> None:
        model, network = self.context.model, self.context.config.network
        if isinstance(network, OwnNetwork) and needs_contiguous(model):
            raise CannotFuse("the network's code does not work in channels_last")
        fuse(model, with_relu=not isinstance(network, OwnNetwork))


class CompiledStep(TrainStep):
    """Forward and backward pass through `torch.compile`, for the batches of full size.

    The last, smaller batch of an epoch runs eagerly: a second compilation would cost more time
    than it saves. Noise comes from the compiler's own generator, so it has the same distribution
    as the eager step's and other values; without noise the losses agree within rounding.
    """

    name = "compiled"

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        self._compiled = compile_network(context.model)
        self._full: torch.Size | None = None
        self.forward = self._by_size

    def _by_size(self, images: Tensor) -> Tensor:
        network = self._compiled if images.shape == self._full else self.context.model
        output: Tensor = network(images)
        return output

    def prepare(self) -> None:
        self.compile(*next(self.context.stream.epoch(0)))

    def compile(self, images: Tensor, labels: Tensor) -> None:
        """Compile for batches of this shape, by one pass that leaves no trace.

        Raises:
            CannotCompile: with the compiler's reason.
        """
        self._full = images.shape
        context = self.context
        try:
            with restoring_state(context.model):
                context.model.train()
                with context.autocast():
                    output = self.forward(images)
                loss, _ = context.objective(output.float(), images, labels)
                loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a compiler raises, there is a step without it
            raise CannotCompile(_first_line(error)) from error
        finally:
            context.optimizer.zero_grad()


def compile_network(model: nn.Module) -> Any:
    """`torch.compile` for one shape of batches. Logging reads what BN writes, no hook is needed.

    Batch renorm is left out: the compiler's backward pass (PyTorch 2.14) would silently compute r
    and d again, from running statistics that have moved since.
    """
    for module in model.modules():
        if isinstance(module, BatchRenorm):
            plain = torch.compiler.disable(module.forward)  # type: ignore[no-untyped-call]
            vars(module)["forward"] = plain
    return torch.compile(model, dynamic=False)


def _first_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


class CapturedStep(CompiledStep):
    """Whole steps in one CUDA graph: from the gather of the images to the logging sums.

    Everything, also which step it is, is read from tensors on the device. An epoch's plan (order,
    crops, flips) and learning rates are sent once. `advance` is a step as the device sees it; on
    CUDA it is captured, STEPS_PER_GRAPH and one of it for full batches and one for the last,
    smaller batch, and replayed, so that a step costs the host nothing. Without CUDA the same
    function is called instead, which is how tests hold it against `TrainStep`.

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
        self._optimizer = optimizer
        if not compile:
            self.forward = context.model
        self._graphs: dict[tuple[int, int], Any] = {}
        self._stream: Stream | None = None
        on_cuda = next(context.model.parameters()).is_cuda
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
            self._run(count, min(size, left))
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
        """Compile, capture every graph of an epoch, and try one. No state changes.

        Raises:
            CannotCompile: the compiler's or CUDA's reason, or a loss far from the eager step's.
        """
        stream = self.context.stream
        with self._aside():
            batch = next(stream.epoch(0))
            if self.forward != self.context.model:
                self.compile(*batch)
        self._send_plan(0, [0.0] * stream.steps, 0)
        full, count = stream.batch_size, len(stream.part)
        for size in sorted({min(full, count), count % full} - {0}, reverse=True):
            self._graphs[1, size] = self._capture(1, size)
        if count >= STEPS_PER_GRAPH * full:
            self._graphs[STEPS_PER_GRAPH, full] = self._capture(STEPS_PER_GRAPH, full)
        self._check(min(full, count))

    def _check(self, size: int) -> None:
        """A graph that read the wrong memory would show in its loss; noise moves it a little."""
        before = self._state()
        losses = []
        for work in (self._graphs[1, size].replay, lambda: self.advance(size)):
            self.context.metrics.compute_and_reset()
            with self._aside():
                work()
            losses.append(self.context.metrics.compute_and_reset().loss)
            self._restore(before)
        if not abs(losses[0] - losses[1]) <= 0.25 * abs(losses[1]):
            raise CannotCompile(f"a captured step's loss is {losses[0]:.4g}, not {losses[1]:.4g}")

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

    def _run(self, count: int, size: int) -> None:
        if self._rate.device.type != "cuda":
            for _ in range(count):
                self.advance(size)
            return
        key = count, size
        if key not in self._graphs:
            self._graphs[key] = self._capture(count, size)
        self._graphs[key].replay()

    def _capture(self, count: int, size: int) -> Any:
        """A graph of `count` steps, captured and not yet executed.

        Raises:
            CannotCompile: with PyTorch's reason.
        """
        before = self._state()
        try:
            with self._aside():  # one ordinary step fills caches and chooses kernels
                self.advance(size)
            graph = torch.cuda.CUDAGraph()
            self.context.optimizer.zero_grad()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                for _ in range(count):
                    self.advance(size)
        except Exception as error:  # whatever CUDA raises, there is a step without it
            raise CannotCompile(_first_line(error)) from error
        finally:
            self._restore(before)
        return graph

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

    def _state(self) -> list[tuple[Tensor, Tensor]]:
        """Every tensor that a step changes, with a copy."""
        context = self.context
        tensors = [*context.model.parameters(), *context.model.buffers()]
        tensors += [*self._optimizer.tensors(), *context.metrics.tensors()]
        tensors += [] if context.layer_log is None else context.layer_log.tensors()
        tensors += [] if context.average is None else context.average.tensors()
        tensors += [self._first, self._now, self._rate]
        self._random = torch.cuda.get_rng_state() if self._rate.is_cuda else None
        return [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def _restore(self, before: list[tuple[Tensor, Tensor]]) -> None:
        for tensor, old in before:
            tensor.copy_(old)
        if self._random is not None:
            torch.cuda.set_rng_state(self._random)


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


# What `auto` tries, the fastest first. Compiling on the CPU won less than the kernels do.
AUTO = {"cuda": ["captured", "compiled", "eager"], "cpu": ["fused", "eager"]}
TRAIN_STEPS: dict[str, type[TrainStep]] = {
    step.name: step for step in (TrainStep, FusedStep, CompiledStep, CapturedStep)
}
ONLY_ON = {"fused": "cpu", "captured": "cuda"}


def works_on(kind: str, device: str) -> bool:
    """Whether there is such a kind of step, for this type of device, `cpu` or `cuda`."""
    return kind in TRAIN_STEPS and ONLY_ON.get(kind, device) == device


def make_train_step(kind: str, context: TrainingContext, say: Callable[[str], None]) -> TrainStep:
    """The training step of a kind; for `auto` the fastest that works on the context's device.

    If one does not work, a message is printed and the next one is tried. Nothing that a run depends
    on has changed afterwards: weights, buffers, optimizer, sums, random state. A resumed run asks
    for the kind that it began with (`train_in` in run.py).

    Raises:
        ConfigError: the kind does not go with the device.
    """
    device = context.device.type
    if kind != "auto" and not works_on(kind, device):
        raise ConfigError(
            f"hardware.step: {kind} works on {ONLY_ON[kind]} only, and this run is on {device}; "
            "auto takes the fastest that works"
        )
    for name in AUTO[device] if kind == "auto" else [kind]:
        try:
            # A library's advice, raised as an error under `python -W error`, must not decide.
            with warnings.catch_warnings(action="ignore"):
                if issubclass(TRAIN_STEPS[name], CompiledStep):
                    _refuse_hidden_numbers(context)
                return _prepared(name, context, say)
        except (KernelsMissing, CannotFuse, CannotCompile) as reason:
            say(f"no {name} step: {reason}; using a slower one")
    return TrainStep(context)


def _refuse_hidden_numbers(context: TrainingContext) -> None:
    """Refuse to compile or capture code that draws numbers which would be constants there.

    Raises:
        CannotCompile: a forward draws from Python's or NumPy's generator.
    """
    if not own_parts(context.config):
        return
    images, _ = next(context.stream.epoch(0))
    before = outside_state()
    try:
        with restoring_state(context.model), torch.no_grad(), context.autocast():
            context.model.train()(images[:8])
        if outside_state() != before:
            raise CannotCompile("the network's code draws from Python's or NumPy's generator")
    finally:
        set_outside_state(before)


def _prepared(name: str, context: TrainingContext, say: Callable[[str], None]) -> TrainStep:
    step = TRAIN_STEPS[name](context)
    try:
        step.prepare()
    except CannotCompile as reason:
        if name != "captured":
            raise
        say(f"captured step without the compiler: {reason}")
        step = CapturedStep(context, compile=False)
        step.prepare()
    return step
