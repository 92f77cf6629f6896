"""Whatever an audit does to a model: afterwards every bit of it is as before."""

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


def check_usable(model: nn.Module) -> None:
    """Refuse a model that no hook can look into, or whose tensors hold no values.

    Raises:
        AuditError: TorchScript, a lazy module that has not run yet, tensors on the meta device.
    """
    for name, module in model.named_modules():
        where = f" at {name}" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise AuditError(
                f"a TorchScript module{where} cannot be looked into; give the module that it was "
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


class Guard:
    """Remembers modules' parameters, buffers and modes, by object and by value.

    Modules that cannot be known beforehand, as they are no children of any other, are added when
    they are met.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[int, tuple[nn.Module, bool, dict[str, Any]]] = {}
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        for module in model.modules():
            self.add(module)

    def add(self, module: nn.Module) -> None:
        """Remember a module as it is now, if it is not known yet."""
        if id(module) in self._kept:
            return
        attributes = {
            "_parameters": dict(module._parameters),
            "_buffers": dict(module._buffers),
            **{name: getattr(module, name) for name in _SWITCHES if name in module.__dict__},
        }
        self._kept[id(module)] = (module, module.training, attributes)
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and id(tensor) not in self._values:
                    self._values[id(tensor)] = (tensor, tensor.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; may be called several times."""
        for module, training, attributes in self._kept.values():
            module.training = training
            for name, value in attributes.items():
                if isinstance(value, dict):
                    held = getattr(module, name)
                    held.clear()
                    held.update(value)
                else:
                    setattr(module, name, value)
        for tensor, value in self._values.values():
            if not _same_bits(tensor, value):
                tensor.copy_(value)


# What the probes and repairs may set on a batch norm.
_SWITCHES = ("momentum", "eps", "evaluate", "track_running_stats")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # NaN differs from itself: then the copy is made, and gives the same bits again.
    return a.shape == b.shape and bool(torch.equal(a.detach(), b))


@contextmanager
def random_state_kept(loaders: Iterable[Any] = ()) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's random states, and those of the loaders' own generators."""
    python, numpy = random.getstate(), np.random.get_state()
    generators = list(_generators(loaders))
    states = [generator.get_state() for generator in generators]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(loaders: Iterable[Any]) -> Iterator[torch.Generator]:
    for loader in loaders:
        for owner in (loader, getattr(loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                yield generator


def seed_everything(seed: int) -> None:
    """Only inside `random_state_kept`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def run_eagerly(model: nn.Module) -> Iterator[None]:
    """Compiled parts run as they are written: measuring needs hooks, compiled code has none."""
    compiled = any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
    if not compiled and not any(hasattr(m, "_orig_mod") for m in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def unwrapped(model: nn.Module) -> nn.Module:
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
