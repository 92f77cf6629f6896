"""Noise found by running the model: every random operation, who called it, and where it arrives.

PyTorch marks its random operators, from `bernoulli_` to attention with dropout. A dispatch mode
sees each of them whatever module or function called it, and follows what it touches, tensor by
tensor and in place too, until a batch norm with batch statistics takes its variance in. So noise is
found in modules nobody knows, in `F.dropout`, and through residual additions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vshift.auditing.samples import Batch, call, main_output, tensors_of
from vshift.auditing.watch import Watch


@dataclass(frozen=True)
class Source:
    """A random operation: the module that ran it, and the function that the module called.

    `place` is the line that did, `file.py:12`; empty where that is in a module of PyTorch's.
    """

    layer: str
    function: str
    place: str = field(default="", compare=False)

    @property
    def placed(self) -> str:
        """With the line that called the function, where no module of its own did."""
        where = f" at {self.place}" if self.place else ""
        return f"{self.layer or 'the model'} ({self.function}{where})"

    def __str__(self) -> str:
        return f"{self.layer or 'the model'} ({self.function})"


@dataclass
class Traced:
    """What one forward of a few samples showed.

    Attributes:
        sources: every random operation that ran, in order.
        arriving: for every batch norm the noise that reaches it through no other BN with batch
            statistics.
        at_output: the noise that reaches the model's output likewise.
        order: the batch norms in the order in which they first ran.
        calls: how often each ran.
        unjudged: modules that normalise by the batch with no BatchNorm module of PyTorch's.
    """

    sources: list[Source] = field(default_factory=list)
    arriving: dict[str, list[Source]] = field(default_factory=dict)
    at_output: list[Source] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)


class _FunctionNames(TorchFunctionMode):
    """Knows the outermost PyTorch function that is running."""

    current = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outermost = not self.current
        if outermost:
            self.current = getattr(func, "__name__", str(func))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            if outermost:
                self.current = ""


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Marks what random operations put out, and everything computed from it, by storage."""

    def __init__(self, watch: Watch, names: _FunctionNames) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch, self.names = watch, names
        self.traced = Traced()
        self._instance_norms: set[str] = set()
        # Storages are kept alive with their marks: an address must not be given out again.
        self._marks: dict[int, tuple[Any, tuple[Source, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags
        device = _device(args, kwargs)
        before = _random_state(device) if random else None
        output = func(*args, **kwargs)
        marks = self.marks_of((args, kwargs))
        if "batch_norm" in func._opname:
            self._judge(self.watch.current)
        if before is not None and (
            kwargs.get("generator") is not None or not torch.equal(before, _random_state(device))
        ):
            source = Source(self.watch.current, self.names.current or func._opname, _place())
            if source not in self.traced.sources:
                self.traced.sources.append(source)
            marks = _union(marks, (source,))
        if marks and not _takes_batch_statistics(func, args):
            self._mark(output, marks)
        return output

    def marks_of(self, tree: Any) -> tuple[Source, ...]:
        marks: tuple[Source, ...] = ()
        if self._marks:
            for tensor in tensors_of(tree):
                key = _storage_key(tensor)
                if key in self._marks:
                    marks = _union(marks, self._marks[key][1])
        return marks

    def _mark(self, tree: Any, marks: tuple[Source, ...]) -> None:
        for tensor in tensors_of(tree):
            key = _storage_key(tensor)
            if key is not None:
                old = self._marks[key][1] if key in self._marks else ()
                self._marks[key] = (tensor.untyped_storage(), _union(old, marks))

    def _judge(self, layer: str) -> None:
        """Note a batch norm that none of PyTorch's modules runs; instance norm has its kernel."""
        known = layer in self.traced.calls or "instance_norm" in self.names.current
        if not known and layer not in self._instance_norms and layer not in self.traced.unjudged:
            self.traced.unjudged.append(layer)

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _InstanceNorm):
            self._instance_norms.add(name)
        if not isinstance(module, _BatchNorm):
            return
        traced = self.traced
        traced.calls[name] = traced.calls.get(name, 0) + 1
        if name not in traced.arriving:
            traced.order.append(name)
        old = tuple(traced.arriving.get(name, ()))
        traced.arriving[name] = list(_union(old, self.marks_of(inputs)))


def _place() -> str:
    """The line outside of PyTorch that runs the present operation; empty if a module of its did."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _skipped(frame.f_code.co_filename):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return "" if file.startswith(_MODULES) else f"{Path(file).name}:{frame.f_lineno}"


_TORCH = str(Path(torch.__file__).parent)
_MODULES = (str(Path(nn.modules.__file__).parent), "<")  # generated code has no lines


def _skipped(file: str) -> bool:
    inside = file.startswith(_TORCH) and not file.startswith(_MODULES)
    return inside or file == __file__


def _union(a: tuple[Source, ...], b: tuple[Source, ...]) -> tuple[Source, ...]:
    return a + tuple(source for source in b if source not in a) if b else a


def _storage_key(tensor: Tensor) -> int | None:
    if tensor.layout != torch.strided:
        return None
    return int(tensor.untyped_storage()._cdata)


def _takes_batch_statistics(func: Any, args: Any) -> bool:
    """Whether this normalises by the batch: behind it the noise's variance is taken in."""
    name = func._opname
    if "batch_norm" not in name or "backward" in name:
        return False
    flags = [arg for arg in args if isinstance(arg, bool)]
    return "with_update" in name or (bool(flags) and flags[0])


def _device(args: Any, kwargs: Any) -> torch.device:
    tensors = tensors_of((args, kwargs))
    if tensors:
        return tensors[0].device
    return torch.device(kwargs.get("device") or "cpu")


def _random_state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


@torch.no_grad()
def trace(model: nn.Module, batch: Batch, watch: Watch) -> Traced:
    """Run a few samples in the model's present mode and follow the noise."""
    names = _FunctionNames()
    follower = _Follower(watch, names)
    with watch.watching(follower.enter), names, follower:
        output = main_output(call(model, batch.inputs))
    follower.traced.at_output = list(follower.marks_of(output))
    return follower.traced


class Silenced(TorchFunctionMode):
    """Inside, functional dropout does nothing, and attention drops nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = _without_dropout(args, kwargs)
        if func is F.multi_head_attention_forward:
            kwargs["training"] = False
        return func(*args, **kwargs)


_DROPOUTS: set[Callable[..., Any]] = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.feature_dropout,
    torch.alpha_dropout,
}


def _without_dropout(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if len(args) > 4:  # query, key, value, attn_mask, dropout_p
        return (*args[:4], 0.0, *args[5:]), kwargs
    return args, {**kwargs, "dropout_p": 0.0}


def digests(
    model: nn.Module, batch: Batch, watch: Watch, rows: int
) -> tuple[list[tuple[str, int]], Tensor]:
    """What every module's output is for the first rows of a batch.

    Returns:
        (module, hash of its output for these rows) in the order in which they end; and the model's
        output for these rows.
    """
    found: list[tuple[str, int]] = []

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        parts = [_rows(t, rows, batch.count) for t in tensors_of(output)]
        found.append((name, hash(tuple(_bytes(part) for part in parts if part is not None))))

    with torch.no_grad(), watch.watching(leave=leave):
        output = main_output(call(model, batch.inputs))
    part = _rows(output, rows, batch.count)
    return found, (output if part is None else part).detach().float().cpu()


def _rows(tensor: Tensor, rows: int, count: int) -> Tensor | None:
    """The part that belongs to the first samples; images folded into patches stay together."""
    if tensor.ndim == 0 or len(tensor) % count:
        return None
    return tensor[: len(tensor) // count * rows]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def first_difference(a: list[tuple[str, int]], b: list[tuple[str, int]]) -> str | None:
    """The first module whose output differs between two runs; None if none does."""
    for (name, one), (other, two) in zip(a, b, strict=False):
        if name != other or one != two:
            return name
    return None if len(a) == len(b) else a[min(len(a), len(b)) - 1][0]


@contextmanager
def silenced(wanted: bool) -> Iterator[None]:
    """`Silenced` if wanted."""
    if not wanted:
        yield
        return
    with Silenced():
        yield
