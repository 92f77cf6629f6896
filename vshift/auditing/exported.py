"""An exported program (.pt2) as a model whose layers an audit can see.

`torch.export` turns layers into calls of operators. Those of batch norm and dropout are turned back
into modules that share the program's tensors, so that they have a mode again.
"""

from __future__ import annotations

import logging
import operator
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
    # PyTorch logs symbols of dynamic shapes that no user can do anything about.
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.export.load(path).module()
    except Exception as error:  # a damaged archive raises many kinds
        raise AuditError(
            f"{path} holds no exported program: {str(error).splitlines()[0]}"
        ) from error
    finally:
        logger.setLevel(level)
    if not isinstance(graph, GraphModule):
        raise AuditError(f"{path} holds no graph")
    return with_modules(graph)


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
    """Call the module instead of an operator, under its name before the export."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][0]) if stack else ""
    present = dict(program.named_modules()).get(name)
    # One batch norm, called again.
    mean = getattr(module, "running_mean", None)
    same = mean is not None and mean is getattr(present, "running_mean", None)
    same = same and type(present) is type(module)
    if any(n.op == "call_module" and n.target == name for n in program.graph.nodes):
        is_free = same
    else:
        # What the program keeps under the name may be this module's tensors, and no more.
        is_free = present is None or (
            next(present.children(), None) is None
            and all(hasattr(module, key) for key, _ in present.named_parameters())
            and all(hasattr(module, key) for key, _ in present.named_buffers())
        )
    if not (name and is_free):
        name, same = f"{type(module).__name__.lower()}_{node.name}", False
    if not same:
        program.set_submodule(name, module)
    with program.graph.inserting_before(node):
        new = program.graph.call_module(name, (node.args[0],))
    # After decomposition an operator gives (output, mean, rstd), and its output is taken from that.
    items = [user for user in node.users if user.target is operator.getitem]
    for item in items:
        if item.args[1] == 0:
            item.replace_all_uses_with(new)
        program.graph.erase_node(item)
    if not items:
        node.replace_all_uses_with(new)
    program.graph.erase_node(node)


def _batch_norm(program: GraphModule, node: Node, momentum: Any, eps: Any) -> nn.Module:
    """The layer of a call whose first arguments are input, weight, bias, running mean, variance."""
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {
        name: operator.attrgetter(str(arg.target))(program)
        for name, arg in zip(names, node.args[1:5], strict=True)
        if isinstance(arg, Node)
    }
    sample = node.args[0].meta["val"]  # type: ignore[union-attr]
    layer = _BY_RANK[sample.ndim](
        sample.shape[1], float(eps), float(momentum), affine="weight" in tensors,
        track_running_stats="running_mean" in tensors,
    )  # fmt: skip
    if isinstance(node.args[3], Node):  # the number of batches is next to the running mean
        counter = str(node.args[3].target).replace("running_mean", "num_batches_tracked")
        found = dict(program.named_buffers()).get(counter)
        tensors |= {"num_batches_tracked": found} if found is not None else {}
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    return layer
