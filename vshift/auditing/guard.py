"""Keeps a model and all random states bit for bit as they were."""

from __future__ import annotations

import copy
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vshift.auditing.samples import AuditError


def check_usable(model: nn.Module) -> None:
    """Refuse a model that hooks cannot observe, or whose tensors hold no values.

    Raises:
        AuditError: TorchScript, a lazy module that has not run yet, tensors on the meta device.
    """
    for name, module in model.named_modules():
        where = f" at {name}" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise AuditError(
                f"a TorchScript module{where} cannot be inspected; give the module that it was "
                "made from, or an exported program (.pt2)"
            )
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and is_lazy(tensor):
                raise AuditError(
                    f"the {type(module).__name__}{where} has no parameters yet; run a batch "
                    "through the model first"
                )
            if tensor is not None and tensor.is_meta:
                raise AuditError(
                    f"the model{where} is on the meta device, without values; build it on the CPU "
                    "and load its weights"
                )


class SavedState:
    """Everything that modules hold, by object and by value: to restore it, and to see what changed.

    Parameters and buffers, modes, hooks and plain attributes are saved, and what these hold: lists,
    dicts and other containers, tensors, arrays, generators, and objects of classes that are not a
    library's, with the attributes of the class itself. Modules that no other module has as a child
    are added when they first run.

    Attributes:
        incomplete: whether there was more than MOST_OBJECTS, of which the rest is not saved.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved: dict[int, _Saved] = {}
        self.incomplete = False
        for module in model.modules():
            self.add(module)

    def add(self, module: nn.Module) -> None:
        """Save a module as it is now, unless it is known already."""
        waiting: list[Any] = [module]
        while waiting:
            value = waiting.pop()
            kind = None if id(value) in self._saved else _kind_of(value)
            if kind is None:
                continue
            if len(self._saved) >= MOST_OBJECTS:
                self.incomplete = True
                return
            content, inside = kind.save(value)
            inside = list(inside)
            self._saved[id(value)] = _Saved(value, kind, content, inside)
            waiting += inside

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for saved in self._saved.values():
            if self._differs(saved):
                saved.kind.restore(saved.value, saved.content)

    def changed_modules(self, model: nn.Module) -> list[str]:
        """The modules that hold something other than the mode that differs from what was saved."""
        return [name for name, module in model.named_modules() if self._changed_within(module)]

    def _changed_within(self, module: nn.Module) -> bool:
        waiting, seen = [module], set[int]()
        while waiting:
            saved = self._saved.get(id(value := waiting.pop()))
            if saved is None or id(value) in seen:
                continue
            seen.add(id(value))
            if self._differs(saved, mode=False):
                return True
            waiting += [v for v in saved.inside if not isinstance(v, nn.Module)]
        return False

    def _differs(self, saved: _Saved, mode: bool = True) -> bool:
        content = saved.content
        # A compiled module has no mode of its own, but that of the module inside.
        if not mode and isinstance(saved.value, nn.Module) and "training" in content:
            content = {**content, "training": saved.value.training}
        return not saved.kind.is_unchanged(saved.value, content)


MOST_OBJECTS = 200_000  # saved of one model; a replay buffer's millions would take minutes


@dataclass(frozen=True)
class _Kind:
    """How values of one kind are saved.

    Attributes:
        save: value → (content, the values inside).
        restore: puts a content back in place.
        is_unchanged: whether the value still has this content.
    """

    save: Callable[[Any], tuple[Any, Iterable[Any]]]
    restore: Callable[[Any, Any], None]
    is_unchanged: Callable[[Any, Any], bool]


@dataclass(frozen=True)
class _Saved:
    value: Any
    kind: _Kind
    content: Any
    inside: list[Any]


def _are_same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return list(map(id, a)) == list(map(id, b))


def _save_tensor(tensor: Tensor) -> tuple[Any, tuple[()]]:
    copy = tensor.detach().clone()
    return (copy, tensor.requires_grad), ()


def _are_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have all but their values in common."""
    return all(getattr(a, k) == getattr(b, k) for k in ("shape", "dtype", "device", "layout"))


def _restore_tensor(tensor: Tensor, content: tuple[Tensor, bool]) -> None:
    copy, requires_grad = content
    if _are_alike(tensor, copy):
        tensor.detach().copy_(copy)
    else:  # resized in forward, as observers do, or cast
        tensor.data = copy.clone()
    if tensor.requires_grad != requires_grad and tensor.is_leaf:
        tensor.requires_grad_(requires_grad)


def _is_unchanged_tensor(tensor: Tensor, content: tuple[Tensor, bool]) -> bool:
    copy, requires_grad = content
    if tensor.requires_grad != requires_grad or not _are_alike(tensor, copy):
        return False
    ours, saved = tensor.detach(), copy
    if copy.layout != torch.strided:
        ours, saved = ours.to_dense(), saved.to_dense()
    if torch.equal(ours, saved):
        return True
    if not (copy.is_floating_point() or copy.is_complex()) or not bool(saved.isnan().any()):
        return False
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (ours, saved)]
    return torch.equal(*bits)  # NaN differs from itself


def _restore_attributes(value: Any, content: dict[str, Any]) -> None:
    attributes = vars(value)  # not setattr, which classes override
    attributes.clear()
    attributes.update(content)


def _restore_sequence(value: Any, content: list[Any]) -> None:
    value.clear()
    value.extend(content)


def _restore_entries(value: Any, content: dict[Any, Any]) -> None:
    value.clear()
    value.update(content)


def _restore_generator(value: Any, content: Any) -> None:
    value.bit_generator.state = content


def _slots_of(value: Any) -> dict[str, Any]:
    """What an object without a `__dict__` holds."""
    found = [item for kind in type(value).__mro__ for item in vars(kind).items()]
    names = [name for name, item in found if isinstance(item, MemberDescriptorType)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _restore_slots(value: Any, content: dict[str, Any]) -> None:
    for name, item in content.items():
        object.__setattr__(value, name, item)  # frozen classes, too


def _data_of(kind: type) -> dict[str, Any]:
    """The attributes of a class that are no methods, properties or other parts of it."""
    return {
        name: item
        for name, item in vars(kind).items()
        if not name.startswith("__") and not hasattr(item, "__get__")
    }


def _restore_class(kind: type, content: dict[str, Any]) -> None:
    present = _data_of(kind)
    for name in present.keys() - content.keys():
        delattr(kind, name)
    for name, item in content.items():
        if present.get(name) is not item:
            setattr(kind, name, item)


def _have_same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Whether two mappings hold the same objects under the same keys, in the same order."""
    return _are_same(a, b) and _are_same(a.values(), b.values())


_OBJECT = _Kind(
    lambda value: (dict(vars(value)), [*vars(value).values(), *type(value).__mro__]),
    _restore_attributes,
    lambda value, content: _have_same_items(vars(value), content),
)
_SLOTTED = _Kind(
    lambda value: ((slots := _slots_of(value)), [*slots.values(), *type(value).__mro__]),
    _restore_slots,
    lambda value, content: _have_same_items(_slots_of(value), content),
)
_CLASS = _Kind(
    lambda value: ((data := _data_of(value)), data.values()),
    _restore_class,
    lambda value, content: _have_same_items(_data_of(value), content),
)
# The first type that a value has decides.
_KINDS: tuple[tuple[Any, _Kind], ...] = (
    (nn.Module, _OBJECT),
    (Tensor, _Kind(_save_tensor, _restore_tensor, _is_unchanged_tensor)),
    (
        dict,
        _Kind(
            lambda value: (dict(value), value.values()),
            _restore_entries,
            _have_same_items,
        ),
    ),
    (
        (list, deque),
        _Kind(lambda value: (list(value), value), _restore_sequence, _are_same),
    ),
    (
        set,
        _Kind(
            lambda value: (set(value), value),
            _restore_entries,
            lambda value, content: bool(value == content),
        ),
    ),
    (
        (tuple, frozenset),
        _Kind(lambda value: (None, value), lambda value, content: None, lambda v, content: True),
    ),
    (
        np.ndarray,
        _Kind(
            lambda value: (value.copy(), ()),
            lambda value, content: np.copyto(value, content),
            lambda value, content: value.tobytes() == content.tobytes(),
        ),
    ),
    (
        torch.Generator,
        _Kind(
            lambda value: (value.get_state(), ()),
            lambda value, content: value.set_state(content),
            lambda value, content: torch.equal(value.get_state(), content),
        ),
    ),
    (
        random.Random,
        _Kind(
            lambda value: (value.getstate(), ()),
            lambda value, content: value.setstate(content),
            lambda value, content: bool(value.getstate() == content),
        ),
    ),
    (
        np.random.Generator,
        _Kind(
            lambda value: (copy.deepcopy(value.bit_generator.state), ()),
            _restore_generator,
            lambda value, content: repr(value.bit_generator.state) == repr(content),
        ),
    ),
    (
        np.random.RandomState,
        _Kind(
            lambda value: (value.get_state(), ()),
            lambda value, content: value.set_state(content),
            lambda value, content: repr(value.get_state()) == repr(content),
        ),
    ),
)
_LIBRARIES = (
    "builtins.", "torch.", "numpy.", "pandas.", "lightning.", "pytorch_lightning.", "transformers.",
)  # fmt: skip
_WITHOUT_STATE = (FunctionType, MethodType, ModuleType)


def _kind_of(value: Any) -> _Kind | None:
    """How a value is saved; None for what cannot change, and for what is not looked into."""
    for types_, kind in _KINDS:
        if isinstance(value, types_):
            return kind
    own_class = value if isinstance(value, type) else type(value)
    if isinstance(value, _WITHOUT_STATE) or f"{own_class.__module__}.".startswith(_LIBRARIES):
        return None
    if isinstance(value, type):
        return _CLASS
    if hasattr(value, "__dict__"):
        return _OBJECT
    return _SLOTTED if _slots_of(value) else None


def safe_copy(model: nn.Module) -> nn.Module:
    """`copy.deepcopy` that also copies tensors left over from a forward with gradients.

    Spectral norm and weight norm keep such a tensor, and deepcopy refuses it after training.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def copy_of(model: nn.Module) -> tuple[nn.Module, str]:
    """A deep copy of a model, and an empty text; or the model itself and why it is not copied."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    size = sum(t.numel() * t.element_size() for t in tensors)
    room = min((_free_bytes(device) for device in {t.device for t in tensors}), default=size * 4)
    if 4 * size > room:  # the copy and what is saved of it, twice over
        return model, "memory is too short"
    try:
        return safe_copy(model), ""
    except Exception as error:  # whatever a model's parts raise that cannot be copied
        return model, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(available.split()[1])
    except (OSError, StopIteration):  # not Linux: the copy's own failure decides
        return 2**62


@contextmanager
def preserving_random_state(loaders: Iterable[Any] = ()) -> Iterator[None]:
    """Restore Python's, NumPy's and PyTorch's random states and the loaders' own on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    generators = [getattr(owner, "generator", None) for owner in owners]
    states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in states:
            generator.set_state(state)


def seed_everything(seed: int) -> None:
    """Seed all generators; only inside `preserving_random_state`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def run_eagerly(model: nn.Module) -> Iterator[None]:
    """Run compiled parts eagerly: measuring needs hooks, and compiled code has none."""
    compiled = any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
    if not compiled and not any(hasattr(m, "_orig_mod") for m in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # Global hooks run twice at such a part: for it, and for the module inside.
        warnings.filterwarnings("ignore", message="Using `torch.compile", category=UserWarning)
        yield


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
