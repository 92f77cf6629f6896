"""Names of modules and tensors: without what wrappers put into them, and for a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def plain_name(name: str) -> str:
    """A module's or tensor's name without what torch.compile puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def in_quotes(name: str) -> str:
    """A module's name for a sentence."""
    return f'"{name}"' if name else "the model"


def fit_to_names(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state dict without the prefix that wrappers put before every name.

    DDP's `module.`, torch.compile's `_orig_mod.`, a LightningModule's attribute: whatever precedes
    all those of `names` that the state dict has.
    """
    prefix = find_prefix(state, names)
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def find_prefix(state: Iterable[str], names: Iterable[str]) -> str:
    """The common prefix of `names` in a state dict; empty without one."""
    state, names = set(state), list(names)
    if any(name in state for name in names):
        return ""
    for name in names:
        ends = [key for key in state if key.endswith(f".{name}")]
        if ends:
            return min(ends, key=lambda key: (len(key), key))[: -len(name)]
    return ""
