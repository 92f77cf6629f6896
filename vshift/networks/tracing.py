"""The graph of a network's forward pass, by torch.fx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.noise import Noise
from vshift.networks.placement import hook_of, hooked


class _Tracer(torch.fx.Tracer):
    """Traces through containers, stops at BN layers and noise, and sees the noise of hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_noise = isinstance(m, Noise) or hook_of(m) is not None
        return (
            isinstance(m, _BatchNorm)
            or is_noise
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)  # which runs its hooks
        for hook in hooked(m, "before"):
            args, kwargs = hook(m, args, kwargs)
        output = super().call_module(m, forward, args, kwargs)
        for hook in hooked(m, "after"):
            output = hook(m, args, output)
        return output


def trace_graph(model: nn.Module) -> torch.fx.Graph:
    """Trace a network without running it.

    Raises:
        ValueError: its forward depends on values.
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds
        raise ValueError(f"the model cannot be traced by torch.fx: {error}") from error
