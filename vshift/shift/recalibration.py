"""Re-estimating BN statistics after training: the paper's "Adjust", in all its readings.

Li et al. (2019, section 5.1) re-estimate the moving averages of a trained net with the parameters
fixed and do not say how. Four ways, by what each layer's statistics are taken of:

    swap        (R1) its input in eval mode with the OLD statistics everywhere; all change at once
    precise     (R2) its input with noise off and BN on each batch's own statistics
                (Wu & Johnson 2021, arXiv 2105.07576)
    layerwise   (R3) its input in eval mode with the NEW statistics in all layers before it
    dropout_on  its input in model.train(), noise ON: what torch.optim.swa_utils.update_bn does.
                A TRAP: it re-estimates the very variance that eval mode does not meet

Only `layerwise` leaves every layer with the statistics of what it meets in eval mode: after `swap`
the layers behind a changed one meet something else than was measured.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vshift.shift.modes import BNState, bn_state, load_bn_state, modes
from vshift.shift.moments import Batches, Pooled, Welford, pooled_moments, watching
from vshift.shift.probe import batch_norms, preserved
from vshift.text import pluralize


class NotFiniteError(ValueError):
    """A layer's input has no finite statistics: the network has diverged, or nearly so."""


Method = Literal["swap", "precise", "layerwise", "dropout_on"]
Estimator = Literal["pooled", "average"]
Which = Literal["both", "variance"]


def recalibrate(
    model: nn.Module,
    batches: Batches,
    method: Method = "precise",
    *,
    moments: Which = "both",
    estimator: Estimator = "pooled",
    limit: int | None = None,
    at_once: bool = False,
) -> None:
    """Re-estimate every BN layer's `running_mean` and `running_var` in place, and nothing else.

    The arguments and errors are those of `estimate`. After an error the model is as it was.
    """
    state = estimate(
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
def estimate(
    model: nn.Module,
    batches: Batches,
    method: Method = "precise",
    *,
    moments: Which = "both",
    estimator: Estimator = "pooled",
    limit: int | None = None,
    at_once: bool = False,
) -> BNState:
    """New statistics for every BN layer, for `load_bn_state`; the model stays as it is.

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
        limit: use the first so many batches.
        at_once: `layerwise` in one single forward over all batches joined: the same result, as
            images do not see one another in eval mode, with all their activations in memory.

    Raises:
        ValueError: for an unknown word; without a BN layer that keeps running statistics; without
            batches; with `layerwise` if a layer runs several times in one forward.
        NotFiniteError: if a layer's statistics are not finite (a diverged net, or a single value
            per channel).
    """
    _check("method", method, Method)
    _check("moments", moments, Which)
    _check("estimator", estimator, Estimator)
    if not batch_norms(model):
        raise ValueError("the model has no BN layer that keeps running statistics")
    # Restores buffers and random states; modes() restores the modes it changes.
    with preserved(model):
        if method == "layerwise":
            measure = _joined if at_once else _one_by_one
            with modes(model, noise=False, norm="running"):
                measure(model, batches, limit, moments, estimator)
        else:
            for name, pooled in _in_one_pass(model, batches, limit, method).items():
                _write(model, name, pooled, moments, estimator)
        return bn_state(model)


def _check(what: str, word: str, allowed: object) -> None:
    if word not in get_args(allowed):
        raise ValueError(f"{what} is one of {', '.join(get_args(allowed))}, not {word!r}")


def _in_one_pass(
    model: nn.Module, batches: Batches, limit: int | None, method: Method
) -> dict[str, Pooled]:
    if method == "dropout_on":
        model.train()
        found = pooled_moments(model, batches, limit)
    else:
        with modes(model, noise=False, norm="batch" if method == "precise" else "running"):
            found = pooled_moments(model, batches, limit)
    if not found:
        raise ValueError("no BN layer ran: there were no batches, or the model uses none of them")
    return found


def _write(
    model: nn.Module, name: str, pooled: Pooled, moments: Which, estimator: Estimator
) -> None:
    """Put a layer's new statistics into its buffers."""
    average = estimator == "average"
    mean = pooled.average_mean if average else pooled.mean
    variance = pooled.average_variance if average else pooled.variance
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise NotFiniteError(
            f"the input of BN layer {name!r} has no finite statistics over {pooled.count} values "
            f"per channel in {pluralize(pooled.batches, 'batch', 'batches')}"
        )
    layer = batch_norms(model)[name]
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_var.copy_(variance)
    if moments == "both":
        layer.running_mean.copy_(mean)


class _Reached(Exception):
    """The layer that is measured has seen its input: the rest of the forward is not needed."""


def _one_by_one(
    model: nn.Module, batches: Batches, limit: int | None, moments: Which, estimator: Estimator
) -> None:
    """One pass for each layer, broken off at that layer."""
    layers = batch_norms(model)
    for name in _forward_order(model, batches):
        welford = Welford()

        def see(_: str, x: Tensor, welford: Welford = welford) -> None:
            welford.add(x)
            raise _Reached

        with watching({name: layers[name]}, see):
            for images in islice(batches(), limit):
                with suppress(_Reached):
                    model(images)
        _write(model, name, welford.take(), moments, estimator)


def _forward_order(model: nn.Module, batches: Batches) -> list[str]:
    """The BN layers in the order in which they run, found with the first batch."""
    order: list[str] = []
    with watching(batch_norms(model), lambda name, _: order.append(name)):
        for images in islice(batches(), 1):
            model(images)
    for name in order:
        if order.count(name) > 1:
            raise _shared(name)
    if not order:
        raise ValueError("no BN layer ran: there were no batches, or the model uses none of them")
    return order


def _shared(name: str) -> ValueError:
    # What such a layer gives out changes what it is given next: nothing to go by layer by layer.
    return ValueError(
        f"layerwise: BN layer {name!r} runs several times in one forward; use swap or precise"
    )


def _joined(
    model: nn.Module, batches: Batches, limit: int | None, moments: Which, estimator: Estimator
) -> None:
    """One forward over all batches joined; every layer gets its statistics just before it runs."""
    inputs = list(islice(batches(), limit))
    sizes = [len(images) for images in inputs]
    done: set[str] = set()

    def see(name: str, x: Tensor) -> None:
        if name in done:
            raise _shared(name)
        done.add(name)
        # Where a model folds, say, patches into the batch, an image has several rows.
        rows = len(x) // sum(sizes)
        welford = Welford()
        for part in torch.split(x, [rows * size for size in sizes]):
            welford.add(part)
        _write(model, name, welford.take(), moments, estimator)

    if not inputs:
        raise ValueError("no BN layer ran: there were no batches, or the model uses none of them")
    with watching(batch_norms(model), see):
        model(torch.cat(inputs))
