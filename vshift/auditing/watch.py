"""Which module runs, seen from outside: no module gets a hook of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.auditing.guard import Guard

Enter = Callable[[str, nn.Module, Any], None]
Leave = Callable[[str, nn.Module, Any, Any], None]


class Names:
    """Names of a model's modules, those included that `model.modules()` does not reach.

    Attributes:
        hidden: modules that run but are no children, by name: what sits in plain lists, tuples and
            dicts, or is made or fetched during a forward.
        built: those among them that were made during a forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self._contained = dict(self._in_containers(model))
        self.hidden: dict[str, nn.Module] = {}
        self.built: set[str] = set()

    def _in_containers(self, model: nn.Module) -> Iterator[tuple[int, str]]:
        for owner, module in model.named_modules():
            for attribute, value in vars(module).items():
                if attribute.startswith("_") and attribute in _TORCH_OWN:
                    continue
                for where, found in _modules_in(value):
                    for inner, part in found.named_modules():
                        if id(part) not in self._names:
                            path = f"{owner}.{attribute}{where}.{inner}"
                            yield id(part), path.strip(".")

    def of(self, module: nn.Module, caller: str) -> str:
        """A module's name; a module that is no child is noted as hidden."""
        if id(module) in self._names:
            return self._names[id(module)]
        name = self._contained.get(id(module))
        if name is None:
            # Made during the forward, as far as one can see; the object may be gone tomorrow.
            name = f"{caller}.<{type(module).__name__}>".strip(".")
            self.built.add(name)
        self.hidden[name] = module
        return name

    def knows(self, module: nn.Module) -> bool:
        return id(module) in self._names


_TORCH_OWN = {"_parameters", "_buffers", "_modules"}


def _modules_in(value: Any, where: str = "", depth: int = 3) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield where, value
    elif depth and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _modules_in(item, f"{where}[{i}]", depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _modules_in(item, f"{where}[{key!r}]", depth - 1)


class Watch:
    """The stack of running modules, and callbacks when one is entered and left."""

    def __init__(self, names: Names, guard: Guard) -> None:
        self.names, self.guard = names, guard
        self.stack: list[str] = []
        self.quiet_hidden = False

    @property
    def current(self) -> str:
        """The innermost running module; an empty string for the model itself or none."""
        return self.stack[-1] if self.stack else ""

    @contextmanager
    def watching(self, enter: Enter | None = None, leave: Leave | None = None) -> Iterator[None]:
        """Calls enter(name, module, inputs) and leave(name, module, inputs, output)."""

        def before(module: nn.Module, inputs: Any) -> None:
            name = self.names.of(module, self.current)
            if not self.names.knows(module):
                self.guard.add(module)
                if self.quiet_hidden and is_switchable(module):
                    module.training = False
            self.stack.append(name)
            if enter is not None:
                enter(name, module, inputs)

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            name = self.stack.pop() if self.stack else ""
            if leave is not None and output is not None:
                leave(name, module, inputs, output)

        self.stack.clear()
        first = hooks.register_module_forward_pre_hook(before)
        second = hooks.register_module_forward_hook(after, always_call=True)
        try:
            yield
        finally:
            first.remove()
            second.remove()
            self.stack.clear()


def is_switchable(module: nn.Module) -> bool:
    """Whether a module's mode decides what it does: BN, dropout and their like."""
    return isinstance(module, _BatchNorm) or not any(True for _ in module.children())
