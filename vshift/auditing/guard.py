"""Keeps a model and all random states bit for bit as they were."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vshift.auditing.samples import AuditError

# What passes and repairs may set on a batch norm.
_SWITCHES = ("momentum", "eps", "evaluate", "track_running_stats")


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
    """Modules' parameters, buffers and modes, by object and by value.

    Modules that no other module has as a child are added when they first run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[int, tuple[nn.Module, bool, dict[str, Any]]] = {}
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        for module in model.modules():
            self.add(module)

    def add(self, module: nn.Module) -> None:
        """Save a module as it is now, unless it is known already."""
        if id(module) in self._modules:
            return
        attributes = {
            "_parameters": dict(module._parameters),
            "_buffers": dict(module._buffers),
            **{name: getattr(module, name) for name in _SWITCHES if name in module.__dict__},
        }
        self._modules[id(module)] = (module, module.training, attributes)
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and id(tensor) not in self._values:
                self._values[id(tensor)] = (tensor, tensor.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for module, training, attributes in self._modules.values():
            module.training = training
            for name, value in attributes.items():
                if isinstance(value, dict):
                    held = getattr(module, name)
                    held.clear()
                    held.update(value)
                else:
                    setattr(module, name, value)
        for tensor, value in self._values.values():
            # NaN differs from itself: then the copy is made, and gives the same bits again.
            if tensor.shape != value.shape or not torch.equal(tensor.detach(), value):
                tensor.copy_(value)


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
    with torch.compiler.set_stance("force_eager"):
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
