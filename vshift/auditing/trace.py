"""Noise found by running the model: every random operation, who called it, and where it arrives.

PyTorch marks its random operators, from `bernoulli_` to attention with dropout. A dispatch mode
sees each of them whatever module or function called it, and follows what it touches, tensor by
tensor and in place too, until a batch norm with batch statistics absorbs its variance. So noise is
found in custom modules, in `F.dropout`, and through residual additions. No module gets a hook of
its own.
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
from torch.nn.modules import module as module_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vshift.auditing.guard import SavedState
from vshift.auditing.names import in_quotes, plain_name
from vshift.auditing.samples import Batch, call, main_output, tensors_of
from vshift.installed import is_installed

# ---- which module is running


Enter = Callable[[str, nn.Module, Any], None]
Leave = Callable[[str, nn.Module, Any, Any], None]


class ModuleTracker:
    """The stack of running modules, with callbacks when a module is entered and left.

    Attributes:
        hidden: modules that run but are no children of the model, by name: in plain lists, tuples
            and dicts, or made or fetched during a forward.
        built: those of them that were made during a forward.
        on_hidden: called with the name of each hidden module that is entered, and with it; not of
            containers.
    """

    def __init__(self, model: nn.Module, saved: SavedState) -> None:
        self.saved = saved
        self.stack: list[str] = []
        self.hidden: dict[str, nn.Module] = {}
        self.built: set[str] = set()
        self.on_hidden: Callable[[str, nn.Module], None] | None = None
        self._names: dict[int, str] = {id(m): plain_name(n) for n, m in model.named_modules()}
        self._contained: dict[int, str] = {}  # names of modules in lists, tuples and dicts
        for owner, module in model.named_modules():
            for attribute, value in vars(module).items():
                if attribute in ("_parameters", "_buffers", "_modules"):
                    continue
                for where, contained in _modules_in(value):
                    for inner, part in contained.named_modules():
                        if id(part) not in self._names:
                            path = f"{owner}.{attribute}{where}.{inner}"
                            self._contained[id(part)] = plain_name(path.strip("."))

    @property
    def current(self) -> str:
        """The innermost running module; an empty string for the model itself or none."""
        return self.stack[-1] if self.stack else ""

    def _enter_hidden(self, module: nn.Module) -> str:
        """Note a module that is no child, and give it a name."""
        name = self._contained.get(id(module))
        if name is None:
            # Probably made during the forward; the object may be gone afterwards.
            name = f"{self.current}.<{type(module).__name__}>".strip(".")
            self.built.add(name)
        self.hidden[name] = module
        self.saved.add(module)
        # Containers keep their mode: it decides nothing, or a custom forward's branch.
        is_leaf = isinstance(module, _BatchNorm) or next(module.children(), None) is None
        if self.on_hidden is not None and is_leaf:
            self.on_hidden(name, module)
        return name

    @contextmanager
    def tracking(self, enter: Enter | None = None, leave: Leave | None = None) -> Iterator[None]:
        """Call enter(name, module, inputs) and leave(name, module, inputs, output)."""

        def before(module: nn.Module, inputs: Any) -> None:
            name = self._names.get(id(module))
            name = self._enter_hidden(module) if name is None else name
            self.stack.append(name)
            if enter is not None:
                enter(name, module, inputs)

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            name = self.stack.pop() if self.stack else ""
            if leave is not None and output is not None:
                leave(name, module, inputs, output)

        self.stack.clear()
        first = module_hooks.register_module_forward_pre_hook(before)
        second = module_hooks.register_module_forward_hook(after, always_call=True)
        try:
            yield
        finally:
            first.remove()
            second.remove()
            self.stack.clear()


def _modules_in(value: Any, where: str = "", depth: int = 3) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield where, value
    elif depth and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _modules_in(item, f"{where}[{i}]", depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _modules_in(item, f"{where}[{key!r}]", depth - 1)


# ---- noise


@dataclass(frozen=True)
class NoiseSource:
    """A random operation: the module that ran it, and the function that the module called.

    Attributes:
        line: the line that called it, `file.py:12`; empty if that is inside a library's layer.
        kind: the class of a layer, a module without others inside; empty if the module is none.
    """

    layer: str
    function: str
    line: str = field(default="", compare=False)
    kind: str = field(default="", compare=False)

    @property
    def operation(self) -> str:
        """What a reader knows it by: a library's layer by its class, other code by its function."""
        return self.function if self.line else self.kind or self.function

    @property
    def with_line(self) -> str:
        """For a sentence: `"drop" (Dropout)`, `"block" (dropout at net.py:12)`."""
        where = f" at {self.line}" if self.line else ""
        return f"{in_quotes(self.layer)} ({self.operation}{where})"

    def __str__(self) -> str:
        return f"{self.layer or 'the model'} ({self.operation})"


@dataclass
class Trace:
    """The modules and noise that one forward of a few samples passed through.

    Attributes:
        sources: every random operation that ran, in order.
        arriving: for every batch norm the noise that reaches it through no other BN with batch
            statistics.
        at_output: the same for the model's output.
        order: the batch norms in the order in which they first ran.
        calls: how often each ran.
        functional_norms: modules that normalise by the batch without PyTorch's BatchNorm module.
        norms_in_training: batch norms that were in training mode when they ran.
    """

    sources: list[NoiseSource] = field(default_factory=list)
    arriving: dict[str, list[NoiseSource]] = field(default_factory=dict)
    at_output: list[NoiseSource] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    functional_norms: list[str] = field(default_factory=list)
    norms_in_training: list[str] = field(default_factory=list)


@torch.no_grad()
def trace(model: nn.Module, batch: Batch, tracker: ModuleTracker) -> Trace:
    """Run a few samples in the model's present mode and follow the noise."""
    functions = _FunctionNames()
    follower = _Follower(tracker, functions)
    with tracker.tracking(follower.enter), functions, follower:
        output = main_output(call(model, batch.inputs))
    follower.trace.at_output = list(follower.marks_of(output))
    return follower.trace


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
    """Marks the output of random operations, and everything computed from it, by storage."""

    def __init__(self, tracker: ModuleTracker, functions: _FunctionNames) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker, self.functions = tracker, functions
        self.trace = Trace()
        self._instance_norms: set[str] = set()
        self._layer_kinds: dict[str, str] = {}
        # Storages are kept alive with their marks: an address must not be reused.
        self._marks: dict[int, tuple[Any, tuple[NoiseSource, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags
        tensors = tensors_of((args, kwargs))
        device = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
        before = _random_state(device) if random else None
        output = func(*args, **kwargs)
        marks = self.marks_of(tensors)
        layer, is_norm = self.tracker.current, "batch_norm" in func._opname
        # A batch norm that no module of PyTorch's runs; instance norm shares its kernel.
        if is_norm and not (
            layer in self.trace.calls
            or layer in self._instance_norms
            or layer in self.trace.functional_norms
            or "instance_norm" in self.functions.current
        ):
            self.trace.functional_norms.append(layer)
        # With a rate of 0 a random operator draws nothing.
        if before is not None and (
            kwargs.get("generator") is not None or not torch.equal(before, _random_state(device))
        ):
            function = self.functions.current or func._opname
            kind = self._layer_kinds.get(layer, "")
            source = NoiseSource(layer, function, _calling_line(in_layer=bool(kind)), kind)
            if source not in self.trace.sources:
                self.trace.sources.append(source)
            marks = _union(marks, (source,))
        # Normalising by the batch absorbs the noise's variance.
        flags = [arg for arg in args if isinstance(arg, bool)]
        absorbs = (
            is_norm
            and "backward" not in func._opname
            and ("with_update" in func._opname or (bool(flags) and flags[0]))
        )
        if marks and not absorbs:
            for tensor in tensors_of(output):
                key = _storage_key(tensor)
                if key is not None:
                    old = self._marks[key][1] if key in self._marks else ()
                    self._marks[key] = (tensor.untyped_storage(), _union(old, marks))
        return output

    def marks_of(self, tree: Any) -> tuple[NoiseSource, ...]:
        marks: tuple[NoiseSource, ...] = ()
        if self._marks:
            for tensor in tensors_of(tree):
                key = _storage_key(tensor)
                if key in self._marks:
                    marks = _union(marks, self._marks[key][1])
        return marks

    def enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        if next(module.children(), None) is None:
            self._layer_kinds[name] = type(module).__name__
        if isinstance(module, _InstanceNorm):
            self._instance_norms.add(name)
        if not isinstance(module, _BatchNorm):
            return
        trace = self.trace
        trace.calls[name] = trace.calls.get(name, 0) + 1
        if module.training and name not in trace.norms_in_training:
            trace.norms_in_training.append(name)
        if name not in trace.arriving:
            trace.order.append(name)
        old = tuple(trace.arriving.get(name, ()))
        trace.arriving[name] = list(_union(old, self.marks_of(inputs)))


_TORCH = str(Path(torch.__file__).parent)
_MODULES = (str(Path(nn.modules.__file__).parent), "<")  # generated code has no lines


def _calling_line(in_layer: bool) -> str:
    """The line outside PyTorch that runs this operation; empty in a module of PyTorch's.

    Args:
        in_layer: whether a layer runs it, of whose code a reader does not know the lines, either,
            if it is a library's.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        inside_torch = file.startswith(_TORCH) and not file.startswith(_MODULES)
        if not inside_torch and file != __file__:
            break
        frame = frame.f_back
    file = frame.f_code.co_filename
    if file.startswith(_MODULES) or (in_layer and is_installed(Path(file))):
        return ""
    return f"{Path(file).name}:{frame.f_lineno}"


def _union(a: tuple[NoiseSource, ...], b: tuple[NoiseSource, ...]) -> tuple[NoiseSource, ...]:
    return a + tuple(source for source in b if source not in a) if b else a


def _storage_key(tensor: Tensor) -> int | None:
    if tensor.layout != torch.strided:
        return None
    return int(tensor.untyped_storage()._cdata)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


# ---- noise switched off

_DROPOUTS: set[Callable[..., Any]] = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.feature_dropout, torch.alpha_dropout,
}  # fmt: skip
# What `Silenced` silences, as `NoiseSource.function` names it.
SILENCEABLE = {function.__name__ for function in _DROPOUTS} | {
    "scaled_dot_product_attention", "multi_head_attention_forward",
}  # fmt: skip


class Silenced(TorchFunctionMode):
    """A mode in which functional dropout does nothing and attention drops nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:  # query, key, value, attn_mask, dropout_p
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        if func is F.multi_head_attention_forward:
            kwargs["training"] = False
        return func(*args, **kwargs)
