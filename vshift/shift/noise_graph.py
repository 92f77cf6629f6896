"""Paths from noise modules to BN layers, found by tracing the network as built, not by names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.tracing import SUMS, Graph, Weighted, calls, operands
from vshift.shift.modes import acts, noise_modules

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
        width: the number of channels, where a concatenation tells it; None: all.
    """

    noise: str
    call: int = 0
    linears: tuple[str, ...] = ()
    offset: int = 0
    width: int | None = None

    def meets(self, other: NoisePath) -> bool:
        """Whether two paths reach a channel in common."""
        if self.width is None or other.width is None:
            return True
        return self.offset < other.offset + other.width and other.offset < self.offset + self.width


class NoiseGraph(Graph):
    """A traced model: the noise that arrives at every BN layer, and the layers it passed.

    Raises:
        ValueError: the model cannot be traced, because its forward depends on values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.noises = noise_modules(model)
        self._reaching: dict[Node, frozenset[str]] = {}
        self._is_noisy: dict[Node, bool] = {}  # by noise that acts
        self.batch_norms: dict[str, list[Node]] = {}  # every call
        self._calls: dict[Node, int] = {}  # of noise: which one
        for node in self.nodes:
            arriving = frozenset[str]().union(*(self._reaching[n] for n in node.all_input_nodes))
            is_noisy = any(self._is_noisy[n] for n in node.all_input_nodes)
            module, name = self.module(node), str(node.target)
            if isinstance(module, _BatchNorm):
                self.batch_norms.setdefault(name, []).append(node)
                arriving, is_noisy = frozenset(), False
            elif module is not None and name in self.noises:
                self._calls[node] = sum(str(earlier.target) == name for earlier in self._calls)
                arriving |= {name}
                is_noisy |= acts(module)
            self._reaching[node], self._is_noisy[node] = arriving, is_noisy

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
            if isinstance(self.module(source), Weighted):
                linears[name] = str(source.target)
        return linears

    def paths_to(self, name: str) -> list[NoisePath] | None:
        """The path of each noise that acts in front of a BN layer; None if not all can be followed.

        Followed are convolutions, fc layers, additions, and concatenations of channels at the end:
        what is linear in the noise. A BN layer that is called several times has no such paths.
        """
        first, *others = self.batch_norms[name]
        try:
            return None if others else self._follow(_input(first))
        except _NotFollowed:
            return None

    def _follow(self, node: Node) -> list[NoisePath]:
        if not self._is_noisy[node]:
            return []
        module = self.module(node)
        if module is not None and node in self._calls:
            if not acts(module):
                return self._follow(_input(node))
            if self._is_noisy[_input(node)]:
                raise _NotFollowed  # noise upon noise
            return [NoisePath(str(node.target), self._calls[node])]
        if isinstance(module, Weighted):
            before = self._follow(_input(node))
            if any(path.offset for path in before):
                raise _NotFollowed
            return [replace(p, linears=(*p.linears, str(node.target))) for p in before]
        if isinstance(module, nn.Identity):
            return self._follow(_input(node))
        if calls(node, SUMS) and not node.kwargs:
            return [path for source in operands(node.args) for path in self._follow(source)]
        if calls(node, _CONCATENATIONS):
            tensors, *dim = node.args
            if node.kwargs.get("dim", dim[0] if dim else 0) != 1:
                raise _NotFollowed
            paths: list[NoisePath] = []
            offset = 0
            for source in operands(tensors):
                width = self._channels(source)
                paths += [
                    replace(p, offset=p.offset + offset, width=p.width or width)
                    for p in self._follow(source)
                ]
                offset += width
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
        if calls(node, _CONCATENATIONS):
            return sum(self._channels(source) for source in operands(node.args[0]))
        if node in self._calls or kind in _KEEPING_CHANNELS or calls(node, SUMS):
            return self._channels(_input(node))
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
