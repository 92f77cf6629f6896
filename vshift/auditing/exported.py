"""An exported program (.pt2) as a model that an audit can look into.

`torch.export` turns layers into calls of operators. Those of batch norm and dropout are turned back
into modules that share the program's tensors, so that they have a mode again.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from vshift.auditing.samples import AuditError

_BY_RANK = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def load_program(path: Path) -> nn.Module:
    """Read a program that `torch.export.save` wrote, with batch norm and dropout as modules.

    Raises:
        AuditError: missing, damaged, or without a graph that runs.
    """
    if not path.is_file():
        raise AuditError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.export.load(path).module()
    except Exception as error:  # a damaged archive raises many kinds
        raise AuditError(
            f"{path} holds no exported program: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(graph, GraphModule):
        raise AuditError(f"{path} holds no graph")
    return with_modules(graph)


def with_modules(program: GraphModule) -> GraphModule:
    """Replace batch norm and dropout operators by modules of the program's own tensors."""
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        name = getattr(node.target, "_opname", "")
        if name == "batch_norm":
            _replace(program, node, _batch_norm(program, node))
        elif name in ("dropout", "dropout_"):
            _replace(program, node, nn.Dropout(float(node.args[1])))
        elif name in ("feature_dropout", "feature_dropout_"):
            _replace(program, node, nn.Dropout2d(float(node.args[1])))
    program.graph.eliminate_dead_code()
    # A plain GraphModule again: what `export` made refuses train() and eval().
    return GraphModule(program, program.graph)


def _replace(program: GraphModule, node: Node, module: nn.Module) -> None:
    name = f"{type(module).__name__.lower()}_{node.name}"
    program.add_module(name, module)
    with program.graph.inserting_before(node):
        node.replace_all_uses_with(program.graph.call_module(name, (node.args[0],)))
    program.graph.erase_node(node)


def _batch_norm(program: GraphModule, node: Node) -> nn.Module:
    """input, weight, bias, running mean, running variance, training, momentum, eps, cudnn."""
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: _tensor(program, arg) for name, arg in zip(names, node.args[1:5], strict=True)}
    momentum, eps = float(node.args[6]), float(node.args[7])  # type: ignore[arg-type]
    sample = node.args[0].meta["val"]  # type: ignore[union-attr]
    layer = _BY_RANK[sample.ndim](
        sample.shape[1], eps, momentum, affine=tensors["weight"] is not None,
        track_running_stats=tensors["running_mean"] is not None,
    )  # fmt: skip
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(layer, name, tensor)
    return layer


def _tensor(program: GraphModule, arg: Any) -> Any:
    """The program's own tensor behind an argument, None for none."""
    if not isinstance(arg, Node):
        return None
    value: Any = program
    for part in str(arg.target).split("."):
        value = getattr(value, part)
    return value
