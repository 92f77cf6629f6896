"""The graph of a network's forward pass, by torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.hooks import hook_of, hooked
from vshift.networks.noise import Noise

Weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class _Tracer(torch.fx.Tracer):
    """Traces through containers, stops at BN layers and noise, and sees the noise of hooks."""

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = (_BatchNorm, Noise, *leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_known = isinstance(m, self.leaves) or hook_of(m) is not None
        return is_known or super().is_leaf_module(m, module_qualified_name)

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


class Graph:
    """A network, traced without running it.

    Args:
        leaves: kinds of module that are one operation, whatever they compute.

    Attributes:
        modules: all of them, by name.
        nodes: the operations, in the order of the forward pass.

    Raises:
        ValueError: its forward depends on values, or changes one in place without naming it anew.
    """

    def __init__(self, model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        self.modules = dict(model.named_modules())
        try:
            self.nodes: list[Node] = list(_Tracer(leaves).trace(model).nodes)
        except Exception as error:  # torch.fx raises many kinds
            raise ValueError(f"the model cannot be traced by torch.fx: {error}") from error
        for node in self.nodes:
            if node.op == "call_method" and str(node.target).endswith("_") and not node.users:
                raise ValueError(
                    f"the forward changes {node.args[0]} by {node.target} and uses it afterwards, "
                    "which is not in the graph; write x = x.add_(y)"
                )

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None


def calls(node: Node, functions: Iterable[Any]) -> bool:
    """Whether a node calls one of these functions, or of these methods by name."""
    return node.op in ("call_function", "call_method") and node.target in functions


def operands(arguments: Any) -> list[Node]:
    """The tensors among an operation's arguments, also one that occurs twice."""
    return [argument for argument in arguments if isinstance(argument, Node)]
