"""An exported program (.pt2) as a model that an audit can look into.

`torch.export` turns layers into calls of operators. Those of batch norm and dropout are turned back
into modules that share the program's tensors, so that they have a mode again.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            graph = torch.export.load(path).module()
    except Exception as error:  # a damaged archive raises many kinds
        raise AuditError(
            f"{path} holds no exported program: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(graph, GraphModule):
        raise AuditError(f"{path} holds no graph")
    return with_modules(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch logs symbols of dynamic shapes that nobody can do anything about."""
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def with_modules(program: GraphModule) -> GraphModule:
    """Replace batch norm and dropout operators by modules of the program's own tensors.

    They get the names they had before the export, so that a state dict keeps its keys.
    """
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        name = getattr(node.target, "_opname", "")
        if name == "batch_norm":
            *_, momentum, eps, _ = node.args
            _replace(program, node, _batch_norm(program, node, momentum, eps))
        elif name == "_native_batch_norm_legit_no_training":
            _replace(program, node, _batch_norm(program, node, *node.args[5:7]))
        elif name in ("dropout", "dropout_"):
            _replace(program, node, nn.Dropout(float(node.args[1])))
        elif name in ("feature_dropout", "feature_dropout_"):
            _replace(program, node, nn.Dropout2d(float(node.args[1])))
    program.graph.eliminate_dead_code()
    # A plain GraphModule again: what `export` made refuses train() and eval().
    return GraphModule(program, program.graph)


def _replace(program: GraphModule, node: Node, module: nn.Module) -> None:
    name = _name(program, node, module)
    if name not in dict(program.named_modules()) or not _same(program.get_submodule(name), module):
        program.set_submodule(name, module)
    with program.graph.inserting_before(node):
        new = program.graph.call_module(name, (node.args[0],))
    # After decomposition an operator gives (output, mean, rstd), and its output is taken from that.
    taken = [user for user in node.users if user.target is operator.getitem]
    for user in taken or [node]:
        if user is node or user.args[1] == 0:
            user.replace_all_uses_with(new)
        if user is not node:
            program.graph.erase_node(user)
    program.graph.erase_node(node)


def _name(program: GraphModule, node: Node, module: nn.Module) -> str:
    """The module's name before the export; a made-up one where it is not known, or taken."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][0]) if stack else ""
    there = dict(program.named_modules()).get(name)
    used = any(n.op == "call_module" and n.target == name for n in program.graph.nodes)
    if name and (there is None or (_same(there, module) if used else _stands_for(there, module))):
        return name
    return f"{type(module).__name__.lower()}_{node.name}"


def _same(there: nn.Module, module: nn.Module) -> bool:
    """Whether both are one batch norm, called again."""
    tensors = [getattr(m, "running_mean", None) for m in (there, module)]
    return type(there) is type(module) and tensors[0] is not None and tensors[0] is tensors[1]


def _stands_for(there: nn.Module, module: nn.Module) -> bool:
    """Whether what the program keeps under a name are the module's own tensors and no more."""
    if any(True for _ in there.children()):
        return False
    held = [*there.named_parameters(), *there.named_buffers()]
    return all(hasattr(module, name) for name, _ in held)


def _batch_norm(program: GraphModule, node: Node, momentum: Any, eps: Any) -> nn.Module:
    """Of an operator whose first arguments are input, weight, bias, running mean and variance."""
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: _tensor(program, arg) for name, arg in zip(names, node.args[1:5], strict=True)}
    sample = node.args[0].meta["val"]  # type: ignore[union-attr]
    layer = _BY_RANK[sample.ndim](
        sample.shape[1], float(eps), float(momentum), affine=tensors["weight"] is not None,
        track_running_stats=tensors["running_mean"] is not None,
    )  # fmt: skip
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(layer, name, tensor)
    if isinstance(node.args[3], Node):  # what counts the batches stands beside the running mean
        beside = str(node.args[3].target).replace("running_mean", "num_batches_tracked")
        found = dict(program.named_buffers()).get(beside)
        if found is not None:
            layer.num_batches_tracked = found
    return layer


def _tensor(program: GraphModule, arg: Any) -> Any:
    """The program's own tensor behind an argument, None for none."""
    if not isinstance(arg, Node):
        return None
    value: Any = program
    for part in str(arg.target).split("."):
        value = getattr(value, part)
    return value
