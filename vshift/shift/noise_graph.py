"""Paths from noise modules to BN layers, found by tracing the network as built, not by names."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
import torch.fx
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.shift.modes import noise_modules

Linear = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class _Tracer(torch.fx.Tracer):
    """Traces through containers and stops at BN layers and noise modules."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class NoisePath:
    """One path from a noise module's output to a BN layer's input.

    Attributes:
        noise: the module's name.
        linears: the convolutions and fc layers on the path, in order.
        offset: the first channel of the BN's input that it reaches (concatenation shifts it).
    """

    noise: str
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
        leaves = {m for m in model.modules() if isinstance(m, _BatchNorm)}
        tracer = _Tracer(leaves | set(self.noises.values()))
        try:
            self.graph = tracer.trace(model)
        except Exception as error:  # torch.fx raises many kinds
            raise ValueError(f"the model cannot be traced by torch.fx: {error}") from error
        self._reaching: dict[Node, frozenset[str]] = {}
        self.batch_norms: dict[str, Node] = {}
        for node in self.graph.nodes:
            arriving = frozenset[str]().union(*(self._reaching[n] for n in node.all_input_nodes))
            module = self.module(node)
            if isinstance(module, _BatchNorm):
                # The first call counts; vshift's networks call every BN once.
                self.batch_norms.setdefault(str(node.target), node)
                arriving = frozenset()
            elif str(node.target) in self.noises and module is not None:
                arriving |= {str(node.target)}
            self._reaching[node] = arriving

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def noise_in_front(self) -> dict[str, list[str]]:
        """For every BN layer, the noise modules whose output reaches it through no other BN.

        Noise on a residual branch reaches the next BN through the addition, and counts.
        """
        return {
            name: sorted(self._reaching[_input(node)]) for name, node in self.batch_norms.items()
        }

    def linear_in_front(self) -> dict[str, str]:
        """For every BN layer, the convolution or fc layer whose output, noisy or not, is its input.

        Layers whose input is something else, for instance a sum, are left out.
        """
        linears = {}
        for name, node in self.batch_norms.items():
            source = _input(node)
            while source.op == "call_module" and str(source.target) in self.noises:
                source = _input(source)
            if isinstance(self.module(source), Linear):
                linears[name] = str(source.target)
        return linears

    def paths_to(self, name: str) -> list[NoisePath] | None:
        """The path of each noise in front of a BN layer; None if not all can be followed.

        Followed are convolutions, fc layers, additions, and concatenations of channels at the end:
        what is linear in the noise.
        """
        try:
            return self._follow(_input(self.batch_norms[name]))
        except _NotFollowed:
            return None

    def _follow(self, node: Node) -> list[NoisePath]:
        if not self._reaching[node]:
            return []
        module = self.module(node)
        if module is not None and str(node.target) in self.noises:
            if self._reaching[_input(node)]:
                raise _NotFollowed  # noise upon noise
            return [NoisePath(str(node.target))]
        if isinstance(module, Linear):
            before = self._follow(_input(node))
            if any(path.offset for path in before):
                raise _NotFollowed
            return [NoisePath(p.noise, (*p.linears, str(node.target))) for p in before]
        if isinstance(module, nn.Identity):
            return self._follow(_input(node))
        if node.op == "call_function" and node.target in (operator.add, torch.add):
            return [path for source in node.all_input_nodes for path in self._follow(source)]
        if node.op == "call_function" and node.target in (torch.cat, torch.concat):
            if node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) != 1:
                raise _NotFollowed
            paths: list[NoisePath] = []
            offset = 0
            for source in node.all_input_nodes:
                paths += [replace(p, offset=p.offset + offset) for p in self._follow(source)]
                offset += self._channels(source)
            return paths
        raise _NotFollowed

    def _channels(self, node: Node) -> int:
        """Number of channels of a node's output, from the layers that compute it."""
        module = self.module(node)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return module.out_channels
        if isinstance(module, nn.Linear):
            return module.out_features
        if isinstance(module, _BatchNorm):
            return module.num_features
        if node.op == "call_function" and node.target in (torch.cat, torch.concat):
            return sum(self._channels(source) for source in node.all_input_nodes)
        if len(node.all_input_nodes) >= 1:
            return self._channels(node.all_input_nodes[0])
        raise _NotFollowed


class _NotFollowed(Exception):
    """Noise takes a path for which there is no exact formula."""


def _input(node: Node) -> Node:
    return node.all_input_nodes[0]


def noise_in_front(model: nn.Module) -> dict[str, list[str]]:
    """For every BN layer the noise modules whose output reaches it through no other BN.

    Raises:
        ValueError: the model cannot be traced.
    """
    return NoiseGraph(model).noise_in_front()
