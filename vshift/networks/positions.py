"""The positions of noise in a network that is not ours, found in its graph.

Noise goes to modules, so a position between two operations that are functions is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.networks.hooks import Where
from vshift.networks.tracing import SUMS, Graph, Weighted, calls, operands

Place = tuple[Where, str]  # of noise: before or after a module, by name

_ACTIVATIONS = {
    "elu", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "relu", "relu6", "relu_",
    "selu", "sigmoid", "silu", "softplus", "tanh",
}  # fmt: skip
_POOLS = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d"}


def find_position(model: nn.Module, position: str) -> list[Place]:
    """The places of a position of `network.noise`, in the order of the forward pass.

    Raises:
        ValueError: with the reason, where there is none, or the network cannot be traced.
    """
    return _FINDERS[position](_PositionGraph(model))


class _PositionGraph(Graph):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, Weighted)  # a subclass is a layer too, if not one to predict with
        self.counts = Counter(str(node.target) for node in self.nodes if self.module(node))
        # Bit i: the value of node i is needed.
        self._needed: dict[Node, int] = {}
        for index, node in enumerate(self.nodes):
            self._needed[node] = 1 << index
            for source in node.all_input_nodes:
                self._needed[node] |= self._needed[source]

    def calling(self, *kinds: type[nn.Module]) -> list[Node]:
        """The nodes that call a module of these kinds."""
        return [node for node in self.nodes if isinstance(self.module(node), kinds)]

    def named(self, node: Node, names: set[str], package: str) -> bool:
        """Whether a node calls a function or method of these names, or a module of a package."""
        module = self.module(node)
        if module is not None:
            return type(module).__module__ == f"torch.nn.modules.{package}"
        name = getattr(node.target, "__name__", node.target)
        return node.op in ("call_function", "call_method") and name in names

    def before(self, reader: Node) -> Place:
        """Noise on what an operation reads, and on nothing else."""
        if self._is_own(reader):
            return "before", str(reader.target)
        source = reader.all_input_nodes[0]
        if self._is_own(source) and len(source.users) == 1:
            return "after", str(source.target)
        raise ValueError(f"neither {source.name} nor {reader.name} is a module with this one call")

    def after(self, node: Node) -> Place:
        """Noise on what an operation returns."""
        if self._is_own(node):
            return "after", str(node.target)
        if len(node.users) == 1 and self._is_own(reader := next(iter(node.users))):
            return "before", str(reader.target)
        raise ValueError(f"{node.name} is no module with this one call")

    def _is_own(self, node: Node) -> bool:
        """Whether a node calls a module that nothing else calls."""
        return self.module(node) is not None and self.counts[str(node.target)] == 1

    def branches(self) -> Iterator[list[Node]]:
        """For every sum of a residual branch and its shortcut, the operations of the branch."""
        for node in self.nodes:
            terms = operands(node.args) if calls(node, SUMS) else []
            one, other = (self._needed[term] for term in terms) if len(terms) == 2 else (0, 0)
            if one & other:  # else a sum with something else, such as a position embedding
                sides = [self._among(one & ~other), self._among(other & ~one)]
                yield max(sides, key=lambda side: (self._weighted(side), len(side)))

    def _among(self, bits: int) -> list[Node]:
        return [node for index, node in enumerate(self.nodes) if bits >> index & 1]

    def _weighted(self, nodes: list[Node]) -> int:
        return sum(isinstance(self.module(node), Weighted) for node in nodes)


def _last_of_branches(*kinds: type[nn.Module]) -> Callable[[_PositionGraph], list[Place]]:
    def find(graph: _PositionGraph) -> list[Place]:
        layers = set(graph.calling(*kinds))
        found = [[node for node in branch if node in layers] for branch in graph.branches()]
        return [graph.before(nodes[-1]) for nodes in found if nodes]

    return _some(find, "no residual branch, a sum with a shortcut, has such a layer")


def _some(
    find: Callable[[_PositionGraph], list[Place]], reason: str
) -> Callable[[_PositionGraph], list[Place]]:
    """A finder that raises instead of finding nothing."""

    def found(graph: _PositionGraph) -> list[Place]:
        places = list(dict.fromkeys(find(graph)))
        if not places:
            raise ValueError(reason)
        return places

    return found


def _before_bn(graph: _PositionGraph) -> list[Place]:
    return [("before", str(node.target)) for node in graph.calling(_BatchNorm)]


def _after_bn(graph: _PositionGraph) -> list[Place]:
    places = []
    for node in graph.calling(_BatchNorm):
        readers = [n for n in node.users if graph.named(n, _ACTIVATIONS, "activation")]
        places.append(graph.after(readers[0] if len(node.users) == len(readers) == 1 else node))
    return places


def _before_pool(graph: _PositionGraph) -> list[Place]:
    pools = [node for node in graph.nodes if graph.named(node, _POOLS, "pooling") or _is_mean(node)]
    return [graph.before(node) for node in pools[-1:]]


def _is_mean(node: Node) -> bool:
    """Whether a node takes the mean over two dimensions, as of an image."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return calls(node, (torch.mean, "mean")) and isinstance(dims, Sequence) and len(dims) == 2


def _before_classifier(graph: _PositionGraph) -> list[Place]:
    return [graph.before(node) for node in graph.calling(nn.Linear)[-1:]]


_FINDERS = {
    "before_last_bn": _last_of_branches(_BatchNorm),
    "before_last_conv": _last_of_branches(nn.Conv2d),
    "before_bn": _some(_before_bn, "it has no batch norm"),
    "after_bn": _some(_after_bn, "it has no batch norm"),
    "before_pool": _some(_before_pool, "it has no pooling"),
    "before_classifier": _some(_before_classifier, "it has no nn.Linear"),
}
