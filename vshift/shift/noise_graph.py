"""Paths from noise modules to BN layers, found by tracing the network as built, not by names."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.tracing import trace_graph
from vshift.shift.modes import noise_modules

Linear = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
# Modules whose output has the channels of their input.
_KEEPING_CHANNELS = {
    f"torch.nn.modules.{part}"
    for part in ("activation", "dropout", "instancenorm", "linear", "normalization", "pooling")
}


@dataclass(frozen=True)
class NoisePath:
    """One path from a noise module's output to a BN layer's input.

    Attributes:
        noise: the module's name.
        call: which of its calls in a forward pass, from 0.
        linears: the convolutions and fc layers on the path, in order.
        offset: the first channel of the BN's input that it reaches (concatenation shifts it).
    """

    noise: str
    call: int = 0
    linears: tuple[str, ...] = ()
    offset: int = 0


class NoiseGraph:
    """A traced model: the noise that arrives at every BN layer, and the layers it passed.

    Raises:
        ValueError: the model cannot be traced, because its forward depends on values.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.noises = noise_modules(model)
        self.graph = trace_graph(model)
        self._reaching: dict[Node, frozenset[str]] = {}
        self.batch_norms: dict[str, list[Node]] = {}  # every call
        self._calls: dict[Node, int] = {}  # of noise: which one
        for node in self.graph.nodes:
            arriving = frozenset[str]().union(*(self._reaching[n] for n in node.all_input_nodes))
            module, name = self.module(node), str(node.target)
            if isinstance(module, _BatchNorm):
                self.batch_norms.setdefault(name, []).append(node)
                arriving = frozenset()
            elif module is not None and name in self.noises:
                self._calls[node] = sum(str(earlier.target) == name for earlier in self._calls)
                arriving |= {name}
            self._reaching[node] = arriving

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def noise_in_front(self) -> dict[str, list[str]]:
        """For every BN layer, the noise modules whose output reaches it through no other BN.

        Noise on a residual branch reaches the next BN through the addition, and counts.
        """
        return {
            name: sorted(frozenset[str]().union(*(self._reaching[_input(n)] for n in nodes)))
            for name, nodes in self.batch_norms.items()
        }

    def linear_in_front(self) -> dict[str, str]:
        """For every BN layer, the convolution or fc layer whose output, noisy or not, is its input.

        Layers whose input is something else, for instance a sum, are left out. Of several calls of
        a layer the first counts.
        """
        linears = {}
        for name, nodes in self.batch_norms.items():
            source = _input(nodes[0])
            while source in self._calls:
                source = _input(source)
            if isinstance(self.module(source), Linear):
                linears[name] = str(source.target)
        return linears

    def paths_to(self, name: str) -> list[NoisePath] | None:
        """The path of each noise in front of a BN layer; None if not all can be followed.

        Followed are convolutions, fc layers, additions, and concatenations of channels at the end:
        what is linear in the noise. A BN layer that is called several times has no such paths.
        """
        first, *others = self.batch_norms[name]
        try:
            return None if others else self._follow(_input(first))
        except _NotFollowed:
            return None

    def _follow(self, node: Node) -> list[NoisePath]:
        if not self._reaching[node]:
            return []
        module = self.module(node)
        if node in self._calls:
            if self._reaching[_input(node)]:
                raise _NotFollowed  # noise upon noise
            return [NoisePath(str(node.target), self._calls[node])]
        if isinstance(module, Linear):
            before = self._follow(_input(node))
            if any(path.offset for path in before):
                raise _NotFollowed
            return [replace(p, linears=(*p.linears, str(node.target))) for p in before]
        if isinstance(module, nn.Identity):
            return self._follow(_input(node))
        if _calls(node, _SUMS) and not node.kwargs:
            return [path for source in _operands(node.args) for path in self._follow(source)]
        if _calls(node, _CONCATENATIONS):
            tensors, *dim = node.args
            if node.kwargs.get("dim", dim[0] if dim else 0) != 1:
                raise _NotFollowed
            paths: list[NoisePath] = []
            offset = 0
            for source in _operands(tensors):
                paths += [replace(p, offset=p.offset + offset) for p in self._follow(source)]
                offset += self._channels(source)
            return paths
        raise _NotFollowed

    def _channels(self, node: Node) -> int:
        """Number of channels of a node's output, from the layers that compute it."""
        module, kind = self.module(node), type(self.module(node)).__module__
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return module.out_channels
        if isinstance(module, nn.Linear):
            return module.out_features
        if isinstance(module, _BatchNorm):
            return module.num_features
        if _calls(node, _CONCATENATIONS):
            return sum(self._channels(source) for source in _operands(node.args[0]))
        if node in self._calls or kind in _KEEPING_CHANNELS or _calls(node, _SUMS):
            return self._channels(_input(node))
        raise _NotFollowed


class _NotFollowed(Exception):
    """Noise takes a path for which there is no exact formula."""


def _input(node: Node) -> Node:
    return node.all_input_nodes[0]


def _calls(node: Node, functions: Sequence[Any]) -> bool:
    """Whether a node calls one of these functions, or of these methods by name."""
    return node.op in ("call_function", "call_method") and node.target in functions


def _operands(arguments: Any) -> list[Node]:
    """The tensors among an operation's arguments, also one that occurs twice."""
    return [argument for argument in arguments if isinstance(argument, Node)]


def noise_in_front(model: nn.Module) -> dict[str, list[str]]:
    """For every BN layer the noise modules whose output reaches it through no other BN.

    Raises:
        ValueError: the model cannot be traced.
    """
    return NoiseGraph(model).noise_in_front()
