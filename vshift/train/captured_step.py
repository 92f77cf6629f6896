"""Whole training steps in one CUDA graph: from the gather of the images to the logging sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vshift.data import Stream
from vshift.train.compiled_step import CannotCompile, CompiledStep, first_line

STEPS = 8  # in one graph: enough that the host never keeps the device waiting


class CapturedStep(CompiledStep):
    """Steps that read everything, also which step they are, from tensors on the device.

    An epoch's plan (order, crops, flips) and learning rates are sent once. `advance` is a step as
    the device sees it; on CUDA it is captured, STEPS and one of it for full batches and one for the
    last, smaller batch, and replayed, so that a step costs the host nothing. Without CUDA the
    same function is called instead, which is how tests hold it against `EagerStep`.
    """

    name = "captured"

    def __init__(self, *words: Any, compile: bool = True, **options: Any) -> None:
        super().__init__(*words, **options)
        if not compile:
            self.forward = self.model
        self._graphs: dict[tuple[int, int], Any] = {}
        self._stream: Stream | None = None
        on_cuda = next(self.model.parameters()).is_cuda
        self._pool: Any = torch.cuda.graph_pool_handle() if on_cuda else None
        # Whatever runs before a capture runs on the stream of the capture: autograd and cuBLAS
        # keep a stream where they first met a weight, and a graph must not wait for another one.
        self._side: Any = torch.cuda.Stream() if on_cuda else None  # type: ignore[no-untyped-call]

    def epoch(
        self, stream: Stream, seed: int, rates: Sequence[float], skip: int = 0
    ) -> Iterator[int]:
        """As `EagerStep.epoch`, some steps at a time."""
        self._place(stream, seed, rates, skip)
        size, left = stream.batch_size, len(stream.part) - skip * stream.batch_size
        while left > 0:
            steps = STEPS if left >= STEPS * size else 1
            self._run(steps, min(size, left))
            left -= steps * size
            yield steps

    def advance(self, size: int) -> None:
        """The next step, with a batch of `size` images."""
        assert self._stream is not None
        places = self._first + torch.arange(size, device=self._first.device)
        images, labels = self._stream.batch(
            self._order[places], self._offsets[places], self._flips[places]
        )
        self._rate.copy_(self._rates.index_select(0, self._now)[0])
        self.update(images, labels)
        self._first += size
        self._now += 1

    def prepare_graphs(self, stream: Stream) -> None:
        """Compile, capture every graph of an epoch, and try one. No state changes.

        Raises:
            CannotCompile: the compiler's or CUDA's reason, or a loss far from the eager step's.
        """
        with self._aside():
            images, labels = next(stream.epoch(0))
            if self.forward != self.model:
                self.prepare(images, labels)
        self._place(stream, 0, [0.0] * stream.steps, 0)
        sizes = {min(stream.batch_size, len(stream.part)), len(stream.part) % stream.batch_size}
        for size in sorted(sizes - {0}, reverse=True):
            self._graphs[1, size] = self._capture(1, size)
        if len(stream.part) >= STEPS * stream.batch_size:
            self._graphs[STEPS, stream.batch_size] = self._capture(STEPS, stream.batch_size)
        self._check(len(images))

    def _check(self, size: int) -> None:
        """A graph that read the wrong memory would show in its loss; noise moves it a little."""
        before = self._state()
        losses = []
        for work in (self._graphs[1, size].replay, lambda: self.advance(size)):
            self.tally.compute_and_reset()
            with self._aside():
                work()
            losses.append(self.tally.compute_and_reset().loss)
            self._restore(before)
        if not abs(losses[0] - losses[1]) <= 0.25 * abs(losses[1]):
            raise CannotCompile(f"a captured step's loss is {losses[0]:.4g}, not {losses[1]:.4g}")

    def _place(self, stream: Stream, seed: int, rates: Sequence[float], skip: int) -> None:
        """Send an epoch's plan and rates into the tensors that the graphs read."""
        plan = stream.plan(seed)
        device = stream.part.images.device
        if stream is not self._stream:
            self._stream, self._graphs = stream, {}
            stream.padded()
            self._order, self._offsets, self._flips = (
                torch.empty_like(tensor, device=device)
                for tensor in (plan.order, plan.offsets, plan.flips)
            )
            self._rates = torch.zeros(len(rates), device=device)
            self._rate = torch.zeros((), device=device)
            self._first = torch.zeros(1, dtype=torch.int64, device=device)
            self._now = torch.zeros(1, dtype=torch.int64, device=device)
        for own, sent in zip(
            (self._order, self._offsets, self._flips, self._rates),
            (plan.order, plan.offsets, plan.flips, torch.tensor(rates)),
            strict=True,
        ):
            if own.is_cuda:  # from pinned memory nothing waits for the copy
                sent = sent.pin_memory()
            own.copy_(sent, non_blocking=True)
        self._first.fill_(skip * stream.batch_size)
        self._now.fill_(skip)
        for group in self.optimizer.param_groups:  # a restored state brings its own
            group["lr"] = self._rate

    def _run(self, steps: int, size: int) -> None:
        if self._rate.device.type != "cuda":
            for _ in range(steps):
                self.advance(size)
            return
        key = steps, size
        if key not in self._graphs:
            self._graphs[key] = self._capture(steps, size)
        self._graphs[key].replay()

    def _capture(self, steps: int, size: int) -> Any:
        """A graph of `steps` steps. Nothing of it has happened yet when this returns.

        Raises:
            CannotCompile: with PyTorch's reason.
        """
        before = self._state()
        try:
            with self._aside():  # one ordinary step fills caches and chooses kernels
                self.advance(size)
            graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                for _ in range(steps):
                    self.advance(size)
        except Exception as error:  # whatever CUDA raises, there is a step without it
            raise CannotCompile(first_line(error)) from error
        finally:
            self._restore(before)
        return graph

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of the captures, behind and before what the present stream does."""
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
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += self.optimizer.tensors()
        tensors += [self._first, self._now, self._rate, *self.tally.tensors()]
        tensors += self.log.tensors() if self.log is not None else []
        self._random = torch.cuda.get_rng_state() if self._rate.is_cuda else None
        return [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def _restore(self, before: list[tuple[Tensor, Tensor]]) -> None:
        for tensor, old in before:
            tensor.copy_(old)
        if self._random is not None:
            torch.cuda.set_rng_state(self._random)
