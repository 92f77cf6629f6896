"""State dicts: read from a file without executing code, and fitted to a model's own names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vshift.auditing.samples import AuditError

# What training loops put around a state dict, the most usual first.
KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or from what torch.save wrote, on the CPU.

    A dict around it is looked into: at the keys of `KEYS`, or where one entry alone holds tensors.

    Raises:
        AuditError: missing, damaged, or holding more than tensors and plain containers, whose
            loading would execute code.
    """
    if not path.is_file():
        raise AuditError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises many kinds
        raise AuditError(
            f"{path} cannot be read without executing code: {_reason(error)}; save a state dict, "
            "`torch.save(model.state_dict(), …)`, or .safetensors"
        ) from error
    return _state_in(found, path)


def _reason(error: Exception) -> str:
    """PyTorch's own words recommend loading the file unsafely; what is in it says more."""
    told = str(error)
    if "TorchScript" in told:
        return "it is a TorchScript archive"
    if named := re.search(r"GLOBAL ([\w.]+)", told):
        return f"it holds more than tensors, {named[1]}"
    if "weights_only" in told or type(error) in (KeyError, EOFError, IndexError):
        return "it is no checkpoint, or a damaged one"
    return (told.splitlines() or [type(error).__name__])[0]


def _state_in(found: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        raise AuditError(f"{path} holds no state dict, but a {type(found).__name__}")
    for key in KEYS:
        if isinstance(found.get(key), Mapping):
            return _state_in(found[key], path)
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    inside = [key for key, value in found.items() if _holds_tensors(value)]
    if not tensors and len(inside) == 1:
        return _state_in(found[inside[0]], path)
    if not tensors:
        keys = ", ".join(f"`{key}`" for key in list(found)[:6]) or "nothing"
        raise AuditError(f"{path} holds no state dict, but {keys}")
    return tensors


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def fitted(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state dict without the prefix that wrappers put before every name.

    DDP's `module.`, torch.compile's `_orig_mod.`, a LightningModule's attribute: whatever stands
    before all those of `names` that the state dict has.
    """
    prefix = prefix_of(state, names)
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def prefix_of(state: Iterable[str], names: Iterable[str]) -> str:
    """What stands before all those of `names` that a state dict has; empty for nothing."""
    state, names = set(state), list(names)
    if any(name in state for name in names):
        return ""
    for name in names:
        ends = [key for key in state if key.endswith(f".{name}")]
        if ends:
            return min(ends, key=lambda key: (len(key), key))[: -len(name)]
    return ""


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict whose parameters are complete; missing buffers are what an audit is for.

    Raises:
        AuditError: parameters that are missing, unknown names, or other shapes.
    """
    own = model.state_dict()
    state = fitted(state, own)
    parameters = {name for name, _ in model.named_parameters()}
    problems = [
        f"{name} is {list(state[name].shape)} in the file and {list(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    lacking = [name for name in own if name in parameters and name not in state]
    unknown = [name for name in state if name not in own]
    problems += _some("it lacks", lacking) + _some("it has an unknown", unknown)
    if problems:
        raise AuditError(f"{path} does not fit the model: {'; '.join(problems[:3])}")
    model.load_state_dict(state, strict=False)


def _some(words: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{words} {names[0]}{more}"] if names else []
