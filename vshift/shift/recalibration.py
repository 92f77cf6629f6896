"""Re-estimating BN statistics after training: the paper's "Adjust", in all its readings.

Li et al. (2019, section 5.1) re-estimate the moving averages of a trained net with the parameters
fixed and do not say how. The methods differ in the input that a layer's statistics are taken of:

    swap        (R1) its input in eval mode with the OLD statistics everywhere; all change at once
    precise     (R2) its input with noise off and BN on each batch's own statistics
                (Wu & Johnson 2021, arXiv 2105.07576)
    layerwise   (R3) its input in eval mode with the NEW statistics in all layers before it
    dropout_on  its input in model.train(), noise ON: what torch.optim.swa_utils.update_bn does.
                A TRAP: it re-estimates the very variance that eval mode does not have

Only `layerwise` leaves every layer with the statistics of its own eval-mode input: after `swap` the
input of the layers after a changed one is no longer what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from vshift.shift.modes import BNState, bn_state, load_bn_state, modes, restoring_state
from vshift.shift.stats import (
    Batches,
    InputStats,
    PooledMoments,
    batch_norms,
    capturing_inputs,
    pooled_moments,
)
from vshift.text import pluralize

if TYPE_CHECKING:
    from vshift.config.recalibration import Estimating as Method

Estimator = Literal["pooled", "average"]


class NotFiniteError(ValueError):
    """A layer's input has no finite statistics: the network has diverged, or nearly so."""


def recalibrate(
    model: nn.Module,
    batches: Batches,
    method: Method = "precise",
    *,
    moments: Literal["both", "variance"] = "both",
    estimator: Estimator = "pooled",
    limit: int | None = None,
    at_once: bool = False,
) -> None:
    """Re-estimate every BN layer's `running_mean` and `running_var` in place, and nothing else.

    The arguments and errors are those of `estimate_statistics`. After an error the model is as it
    was.
    """
    state = estimate_statistics(
        model,
        batches,
        method,
        moments=moments,
        estimator=estimator,
        limit=limit,
        at_once=at_once,
    )
    load_bn_state(model, state)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module,
    batches: Batches,
    method: Method = "precise",
    *,
    moments: Literal["both", "variance"] = "both",
    estimator: Estimator = "pooled",
    limit: int | None = None,
    at_once: bool = False,
) -> BNState:
    """New statistics for every BN layer, for `load_bn_state`; the model does not change.

    Costs one forward pass over the batches. `layerwise` costs about L/2 for L layers, as each
    layer's pass stops there: more where the first layers are the slow ones (13 for the 19 of a
    PreResNet-20), and one with `at_once`. Random numbers that noise or `batches` draw continue from
    the present state, which is restored.

    Args:
        batches: called for each pass; gives the same inputs (as the model takes them) each time.
        moments: `variance` leaves the running means (Hendrycks & Gimpel 2016, arXiv 1607.02488).
        estimator: `pooled`, mean and unbiased variance of all values of all batches, the
            population's; `average`, the batches' means and unbiased variances averaged with equal
            weights, which is what a moving average estimates and leaves out the spread between
            batch means.
        limit: use only this number of batches.
        at_once: `layerwise` in one single forward over all batches joined: the same result, as
            images do not see one another in eval mode, with all their activations in memory.

    Raises:
        ValueError: for an unknown word; without a BN layer that keeps running statistics; without
            batches; with `layerwise` if a layer runs several times in one forward.
        NotFiniteError: if a layer's statistics are not finite (a diverged net, or a single value
            per channel).
    """
    words = {
        "method": (method, tuple(_METHODS)),
        "moments": (moments, ("both", "variance")),
        "estimator": (estimator, get_args(Estimator)),
    }
    for key, (word, allowed) in words.items():
        if word not in allowed:
            raise ValueError(f"{key} is one of {', '.join(allowed)}, not {word!r}")
    layers = batch_norms(model)
    if not layers:
        raise ValueError("the model has no BN layer that keeps running statistics")
    task = _Task(model, layers, batches, limit, moments == "both", estimator == "average", at_once)
    with restoring_state(model):
        _METHODS[method](task)
        return bn_state(model)


@dataclass(frozen=True)
class _Task:
    """The model and batches of a method, which may change modes, buffers and random states."""

    model: nn.Module
    layers: dict[str, nn.modules.batchnorm._BatchNorm]
    batches: Batches
    limit: int | None
    writes_means: bool
    averages: bool
    at_once: bool

    def inputs(self) -> Iterable[Tensor]:
        return islice(self.batches(), self.limit)

    def write(self, name: str, pooled: PooledMoments) -> None:
        """Put a layer's new statistics into its buffers."""
        mean = pooled.average_mean if self.averages else pooled.mean
        variance = pooled.average_variance if self.averages else pooled.variance
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise NotFiniteError(
                f"the input of BN layer {name!r} has no finite statistics over {pooled.count} "
                f"values per channel in {pluralize(pooled.batches, 'batch', 'batches')}"
            )
        layer = self.layers[name]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_var.copy_(variance)
        if self.writes_means:
            layer.running_mean.copy_(mean)


def _nothing_ran() -> ValueError:
    return ValueError("no BN layer ran: there were no batches, or the model uses none of them")


def _one_pass(task: _Task, mode: AbstractContextManager[None]) -> None:
    """All layers at once, with their inputs in this mode."""
    with mode:
        pooled = pooled_moments(task.model, task.batches, task.limit)
    if not pooled:
        raise _nothing_ran()
    for name, layer in pooled.items():
        task.write(name, layer)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    with restoring_state(model):
        model.train()
        yield


def _layerwise(task: _Task) -> None:
    with modes(task.model, noise=False, norm="running"):
        _layerwise_joined(task) if task.at_once else _layerwise_by_passes(task)


class _Reached(Exception):
    """The layer that is measured has its input: the rest of the forward is not needed."""


def _layerwise_by_passes(task: _Task) -> None:
    """One pass for each layer, broken off at that layer."""
    order: list[str] = []  # in which the layers run, found with the first batch
    with capturing_inputs(task.layers, lambda name, _: order.append(name)):
        for images in islice(task.batches(), 1):
            task.model(images)
    if not order:
        raise _nothing_ran()
    for name in order:
        if order.count(name) > 1:
            raise _runs_repeatedly(name)
    for name in order:
        stats = InputStats()

        def capture(_: str, x: Tensor, stats: InputStats = stats) -> None:
            stats.add(x)
            raise _Reached

        with capturing_inputs({name: task.layers[name]}, capture):
            for images in task.inputs():
                with suppress(_Reached):
                    task.model(images)
        task.write(name, stats.pooled())


def _runs_repeatedly(name: str) -> ValueError:
    # The output of such a layer changes its own next input, so there is no order to follow.
    return ValueError(
        f"layerwise: BN layer {name!r} runs several times in one forward; use swap or precise"
    )


def _layerwise_joined(task: _Task) -> None:
    """One forward over all batches joined; every layer gets its statistics just before it runs."""
    inputs = list(task.inputs())
    sizes = [len(images) for images in inputs]
    done: set[str] = set()

    def capture(name: str, x: Tensor) -> None:
        if name in done:
            raise _runs_repeatedly(name)
        done.add(name)
        # Where a model folds, for instance, patches into the batch, an image has several rows.
        rows = len(x) // sum(sizes)
        stats = InputStats()
        for part in torch.split(x, [rows * size for size in sizes]):
            stats.add(part)
        task.write(name, stats.pooled())

    if not inputs:
        raise _nothing_ran()
    with capturing_inputs(task.layers, capture):
        task.model(torch.cat(inputs))


# How each method of `vshift.config.recalibration.METHODS` estimates.
_METHODS: dict[Method, Callable[[_Task], None]] = {
    "precise": lambda task: _one_pass(task, modes(task.model, noise=False, norm="batch")),
    "swap": lambda task: _one_pass(task, modes(task.model, noise=False, norm="running")),
    "layerwise": _layerwise,
    "dropout_on": lambda task: _one_pass(task, _training(task.model)),
}
