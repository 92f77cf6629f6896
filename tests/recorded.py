"""CUDA graphs for tests on the CPU: they hold operations with their tensors, and no Python.

Each operation that PyTorch dispatches in a capture is noted with the very tensors, and a replay
does the same to the same memory: what the step's Python reads is as it was in the capture, as in a
CUDA graph. What would wait for the device is an error in a capture.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {
    "aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::masked_select",
    "aten::nonzero", "aten::_unique2",
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Notes every operation, and does it: a capture that raises leaves half a step behind."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        picks = name == "aten::index" and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in WAITS or picks:
            raise RuntimeError(f"{name} waits for the device, and a capture is underway")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class RecordedGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.operations = []

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.operations:
            inputs = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
            outputs = tensors(out)
            is_view = all(t.untyped_storage().data_ptr() in inputs for t in outputs)
            if is_view and not func._schema.is_mutable:
                continue
            new = tensors(func(*args, **kwargs))
            if not func._schema.is_mutable:
                for own, value in zip(outputs, new, strict=True):
                    own.copy_(value)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@contextmanager
def record(graph, pool=None, stream=None):
    """Stands in for `torch.cuda.graph`."""
    with Recorder(graph.operations):
        yield
