"""Small trained models, and what must be the same before and after an audit."""

from __future__ import annotations

import random
import weakref
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.patients import Net, trained
from tests.auditing.own_file import FILE


def everything(model: nn.Module) -> dict[str, object]:
    """All of a model and of the random states that an audit must leave, as comparable values."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    found: dict[str, object] = {
        f"{name}.{key}": bytes(t.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, module in model.named_modules()
        for key, t in [*module._parameters.items(), *module._buffers.items()]
        if t is not None
    }
    for name, module in model.named_modules():
        found[f"{name} mode"] = module.training
        found[f"{name} hooks"] = [len(getattr(module, hook)) for hook in hooks]
        found[f"{name} switches"] = [getattr(module, k, None) for k in ("momentum", "eps")]
        found[f"{name} objects"] = [id(t) for t in [*module._buffers.values()]]
    found["torch"] = torch.get_rng_state().numpy().tobytes()
    found["python"] = random.getstate()
    found["numpy"] = np.random.get_state()[1].tobytes()
    found["global hooks"] = len(nn.modules.module._global_forward_hooks)
    return found


def deep_state(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Everything that a model holds, as comparable values; written without vshift's own code."""
    seen = {} if seen is None else seen  # keeps what it names alive: an id may be used again
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        content = dense.clone().reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = type(value).__name__, str(value.layout), str(value.dtype), value.requires_grad
        return (*kind, tuple(value.shape), content)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.tobytes())
    if isinstance(value, torch.Generator):
        return ("generator", value.get_state().numpy().tobytes())
    if isinstance(value, random.Random):
        return ("random", value.getstate())
    if isinstance(value, np.random.Generator):
        return ("random", repr(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return ("random", repr(value.get_state()))
    if isinstance(value, weakref.ref):
        return deep_state(value(), seen)
    if isinstance(value, int | float | str | bytes | bool | None):
        return value
    if id(value) in seen:
        return "again"
    seen[id(value)] = value
    if isinstance(value, dict):
        return [(str(key), deep_state(item, seen)) for key, item in value.items()]
    if isinstance(value, set):
        return sorted(map(str, value))
    if isinstance(value, list | tuple | deque):
        return [type(value).__name__, *(deep_state(item, seen) for item in value)]
    kind = type(value)
    if isinstance(value, nn.Module) or kind.__module__.startswith("tests"):
        slots = {key: getattr(value, key, None) for key in getattr(kind, "__slots__", ())}
        of_class = {
            key: item
            for key, item in vars(kind).items()
            if kind.__module__.startswith("tests")
            and isinstance(item, int | float | list | dict)
            and not key.startswith("__")
        }
        return (kind.__name__, deep_state([getattr(value, "__dict__", {}), slots, of_class], seen))
    return kind.__name__


def codes(audit) -> list[str]:
    """Of the findings, the most harmful first."""
    return [finding.code for finding in audit.findings]


@pytest.fixture(scope="module")
def shifted():
    """Dropout before the second of three BN."""
    return trained(0, Net(before_bn2=nn.Dropout(0.5)), epochs=6)


@pytest.fixture
def vshift(vshift, tmp_path):
    """The command line in a folder with a file of models and loaders."""
    (tmp_path / "mine.py").write_text(FILE)
    return vshift
