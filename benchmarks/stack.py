"""Several trainings of one network as one network: weights stacked, one step for all of them.

A thin network leaves a GPU idle. Here S copies with initial weights of their own lie in one tensor
[S, …] for each weight, and `torch.func.vmap` runs a step on S batches at once: convolutions become
grouped ones, batch norm normalises each copy's channels with that copy's batch, noise is drawn for
each copy. The loss is the sum of the copies', so each has the gradient that it has alone.

`stacked_context` puts a stack's network, stream, log and objective in place of a run's own, so that
its training steps, eager or captured, train a stack unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from vshift.data import Stream
from vshift.data.stream import Plan
from vshift.networks.norm import BatchNorm
from vshift.shift.stats import Moments, TrainingLog, batch_norms
from vshift.train.context import TrainingContext, build_model, derive_seed
from vshift.train.objective import Objective
from vshift.train.optimizer import make_optimizer


class Stack(nn.Module):
    """S copies of a network: images [S, B, C, H, W] to logits [S, B, K].

    Args:
        models: the copies, each with its own weights, on one device; they are read and let go.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.count = len(models)
        weights, buffers = stack_module_state(list(models))
        # Registered under names without dots; the order is the copies'.
        self._names = list(weights), list(buffers)
        for place, weight in enumerate(weights.values()):
            self.register_parameter(f"weight{place}", nn.Parameter(weight.detach()))
        for place, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer{place}", buffer)
        # Not a submodule: its own weights are no weights of the stack. Without memory, as
        # functional_call puts the stacked ones in their place.
        self._network = [models[0].to("meta")]
        self._averages = self._without_updates(models[0])

    def forward(self, images: Tensor) -> Tensor:
        network = self._network[0].train(self.training)

        def one(state: dict[str, Tensor], batch: Tensor) -> Tensor:
            output: Tensor = functional_call(network, state, (batch,))
            return output

        output: Tensor = vmap(one, randomness="different")(self.stacked(), images)
        if self.training:
            self._update_running()
        return output

    def stacked(self) -> dict[str, Tensor]:
        """Weights and buffers by their name in one copy, [S, …] each."""
        weights, buffers = self._names
        return {
            **dict(zip(weights, self.parameters(), strict=True)),
            **dict(zip(buffers, self.buffers(), strict=True)),
        }

    def _without_updates(self, network: nn.Module) -> list[tuple[str, float]]:
        """Every batch norm and the weight of its moving average, which it now leaves to us: vmap
        does it layer by layer and copy by copy.

        Raises:
            ValueError: an average without such a weight.
        """
        found = []
        for name, layer in batch_norms(network).items():
            if not isinstance(layer, BatchNorm) or layer.momentum is None:
                raise ValueError(f"{name}: a stack has batch norm with a momentum only")
            layer.update = False
            found.append((name, layer.momentum))
        return found

    @torch.no_grad()
    def _update_running(self) -> None:
        state = self.stacked()
        for name, momentum in self._averages:
            state[f"{name}.num_batches_tracked"].add_(1)
            for kind in ("mean", "var"):
                state[f"{name}.running_{kind}"].lerp_(state[f"{name}.batch_{kind}"], momentum)


class StackedLog:
    """`vshift.shift.stats.TrainingLog` for a stack."""

    def __init__(self, stack: Stack, network: nn.Module) -> None:
        state = stack.stacked()
        self.layers = list(batch_norms(network))
        self._seen = [state[f"{name}.batch_mean"] for name in self.layers]
        self._seen += [state[f"{name}.batch_var"] for name in self.layers]
        self._seen.append(torch.ones_like(self._seen[0][0, 0]))
        self._sums = [torch.zeros_like(tensor) for tensor in self._seen]

    def add(self) -> None:
        torch._foreach_add_(self._sums, self._seen)

    def compute_and_reset(self) -> list[dict[str, Moments]]:
        """Each copy's averages since the last call."""
        *sums, steps = (total.detach().to("cpu", torch.float64) for total in self._sums)
        averages = [total / steps.clamp(min=1) for total in sums]
        torch._foreach_zero_(self._sums)
        half = len(self.layers)
        return [
            {
                name: Moments(averages[i][copy], averages[half + i][copy])
                for i, name in enumerate(self.layers)
            }
            for copy in range(len(averages[0]))
        ]

    def tensors(self) -> list[Tensor]:
        return self._sums


class StackedStream:
    """A batch for each of `count` copies at every step, each in an order of its own.

    It has what a step uses of `vshift.data.Stream`.
    """

    def __init__(self, stream: Stream, count: int) -> None:
        self._stream, self._count = stream, count
        self.part, self.batch_size, self.steps = stream.part, stream.batch_size, stream.steps

    def plan(self, seed: int) -> Plan:
        """A stream's plan, with the copies after the images: order [N, S], offsets [N, S, 2]."""
        plans = [self._stream.plan(seed_of(seed, copy)) for copy in range(self._count)]
        drawn = zip(*plans, strict=True)
        return Plan._make(None if of[0] is None else torch.stack(of, 1) for of in drawn)

    def epoch(self, seed: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        plan = self.plan(seed).to(self.part.images.device)
        for start in range(skip * self.batch_size, len(self.part), self.batch_size):
            yield self.batch(plan.at(slice(start, start + self.batch_size)))

    def batch(self, drawn: Plan) -> tuple[Tensor, Tensor]:
        """Images [S, B, C, H, W] and labels [S, B] of one gather."""
        copies_first = drawn.map(lambda tensor: tensor.transpose(0, 1).flatten(0, 1))
        images, labels = self._stream.batch(copies_first)
        shape = self._count, len(drawn.order)
        return images.view(*shape, *images.shape[1:]), labels.view(shape)

    def padded(self) -> Tensor:
        return self._stream.padded()


def seed_of(seed: int, copy: int) -> int:
    """The seed of a copy's batches in the epoch that has this seed."""
    return derive_seed(seed, copy, "data")


def stacked(objective: Objective) -> Objective:
    """The sum of the copies' losses, so that each gets its own gradient, and all their hits."""

    def both(output: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses, hits = vmap(objective)(output, images, labels)
        return losses.sum(), hits.sum()

    return both


def stacked_context(context: TrainingContext, models: Sequence[nn.Module]) -> TrainingContext:
    """Let a context train copies of its network, with the batches of its stream.

    Args:
        models: the copies, on the context's device; see `Stack`.
    """
    network = build_model(context.config, context.images, 0)
    stack = Stack(models).train()
    context.model = stack
    context.optimizer = make_optimizer(stack, context.config.optimizer)
    context.objective = stacked(context.objective)
    # Not of these classes, but with all that a step uses of them.
    context.stream = cast(Stream, StackedStream(context.stream, len(models)))
    context.layer_log = cast(TrainingLog, StackedLog(stack, network))
    return context
