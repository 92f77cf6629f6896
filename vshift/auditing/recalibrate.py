"""`vshift.recalibrate`: re-estimate any model's BN statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vshift.auditing.guard import preserving_random_state, run_eagerly, safe_copy, unwrap
from vshift.auditing.samples import AuditError, Unpack, call, collect, main_output, unpack
from vshift.shift.recalibration import Estimator, NotFiniteError
from vshift.shift.recalibration import recalibrate as recalibrate_by_inputs
from vshift.shift.stats import batch_norms

if TYPE_CHECKING:
    from vshift.config.recalibration import Estimating as Method


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    method: Method = "precise",
    *,
    inplace: bool = True,
    estimator: Estimator = "pooled",
    unpack: Unpack = unpack,
    batches: int | None = None,
) -> nn.Module:
    """Re-estimate every BN layer's running mean and variance from a loader; nothing else changes.

    Parameters, modes, hooks and random states stay as they are. A layer that runs several times in
    a forward, or that several parents share, gets the statistics of all its inputs.

    Args:
        model: any module; compiled and DDP-wrapped ones are unwrapped.
        loader: training inputs [N, …], at least two batches, shuffled; labels are ignored. The
            batches used are kept in memory.
        method: `precise` (noise off, batch statistics), `swap`, `layerwise` (one pass per layer;
            leaves every layer with the statistics of its own eval input), or `dropout_on` (the
            trap); see `vshift.shift.recalibration`.
        inplace: False changes a copy.
        estimator: `pooled`, the population's moments, or `average` over batches.
        batches: number of batches used; None is all.

    Returns:
        The model given, or its copy (without wrappers).

    Raises:
        AuditError: no BN layer with running statistics, too few batches, statistics that are not
            finite, or `layerwise` on a layer that runs several times. The model is as it was.

    Source: Wu & Johnson 2021 (arXiv 2105.07576); Li et al. 2019, section 5.1.
    """
    inner = unwrap(model)
    if not inplace:
        inner = safe_copy(inner)
    if not batch_norms(inner):
        raise AuditError("the model has no batch norm that keeps running statistics")
    with preserving_random_state([loader]), run_eagerly(inner):
        device = next(iter(inner.parameters()), torch.zeros(())).device
        samples = collect(loader, device, batches, unpack)
        inputs = [batch.inputs for batch in samples.batches]
        try:
            recalibrate_by_inputs(_Called(inner), lambda: inputs, method, estimator=estimator)
        except NotFiniteError as error:
            raise AuditError(f"recalibrate: {error}; the model is as it was") from error
        except ValueError as error:
            raise AuditError(f"recalibrate: {error}") from error
    return model if inplace else inner


class _Called(nn.Module):
    """Passes a batch on as one argument, as several, or by keyword."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, inputs: Any) -> Tensor:
        return main_output(call(self.model, inputs))
