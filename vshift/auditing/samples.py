"""What a loader gives, collected once, so that every probe sees the same samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vshift.errors import VShiftError

LABEL_KEYS = ("labels", "label", "targets", "target")
Unpack = Callable[[Any], tuple[Any, Any]]


class AuditError(VShiftError):
    """An audit that cannot be made of this model and this loader. Exit code 2."""


@dataclass(frozen=True)
class Batch:
    """Inputs as the model takes them, and labels [N] or None."""

    inputs: Any
    labels: Tensor | None

    @property
    def count(self) -> int:
        """Samples: the length of the first tensor."""
        return len(tensors_of(self.inputs)[0])

    def head(self, count: int | None) -> Batch:
        """The first samples; None is all."""
        labels = None if self.labels is None else self.labels[:count]
        return Batch(pytree.tree_map_only(Tensor, lambda t: t[:count], self.inputs), labels)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def unpack(batch: Any) -> tuple[Any, Any]:
    """(inputs, labels or None) of what a loader usually gives.

    A tensor is inputs; of a tuple or list the first item is, and the second the labels; a mapping
    gives its entry `labels`, `label`, `targets` or `target` as labels and the rest as inputs.
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
        return inputs, next((batch[key] for key in LABEL_KEYS if key in batch), None)
    if isinstance(batch, tuple | list) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a mapping gives keyword arguments, a tuple or list positional ones.

    A mapping with one tensor, whose name forward() does not know, gives that tensor.
    """
    if isinstance(inputs, Mapping):
        tensors = tensors_of(inputs)
        if len(tensors) == 1 and not _takes(model, inputs):
            return model(tensors[0])
        _check_names(model, inputs)
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def _check_names(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse entries of a batch that forward() has no argument for."""
    parameters = inspect.signature(model.forward).parameters
    unknown = [name for name in inputs if name not in parameters]
    if unknown and not _takes(model, inputs):
        raise AuditError(
            f"a batch's entries {', '.join(f'`{name}`' for name in unknown)} are no arguments of "
            f"forward({', '.join(parameters)}): a batch that is a mapping gives its entries by "
            f"name, without {', '.join(f'`{key}`' for key in LABEL_KEYS)}; give `unpack=`, a "
            "function from a batch to (inputs, labels), or a loader of (inputs, labels)"
        )


def _takes(model: nn.Module, names: Iterable[str]) -> bool:
    parameters = inspect.signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return anything or set(names) <= set(parameters)


def main_output(output: Any) -> Tensor:
    """The output that is scored: the entry `logits` or `out`, or else the first float tensor.

    Raises:
        AuditError: there is none, or only a number for the whole batch.
    """
    if isinstance(output, Tensor):
        if not output.ndim:
            raise AuditError(
                "the model's output is one number for the whole batch, a loss probably; an audit "
                "needs an output for each sample, [N, …]"
            )
        return output
    for key in ("logits", "out"):
        value = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(value, Tensor) and value.ndim:
            return value
    for leaf in tensors_of(output):
        if leaf.is_floating_point() and leaf.ndim:
            return leaf
    raise AuditError(f"the model's output, a {type(output).__name__}, holds no float tensor")


class Samples:
    """Batches of one loader, as it gave them and, where their shapes allow, in a random order.

    Attributes:
        size: samples in the loader's first batch.
        shuffled: whether `probed` gives a random order; not if shapes differ between batches.
    """

    def __init__(self, given: list[Batch], seed: int) -> None:
        self.given = given
        self.size = given[0].count
        self.count = sum(batch.count for batch in given)
        self.shuffled = _joinable(given)
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(self.count, generator=generator)
        if self.shuffled:
            self._joined = _join(given)

    @property
    def probe_size(self) -> int:
        """Samples in a batch of the probes: the loader's, but 8 at least where that was 1."""
        return min(self.size if self.size > 1 else 8, self.count // 2 or 1)

    def probed(self) -> Iterator[Batch]:
        """Batches of one size, the same at every call; a smaller rest is left out."""
        if not self.shuffled:
            yield from self.given
            return
        size = self.probe_size
        for start in range(0, self.count - size + 1, size):
            yield self.take(self._order[start : start + size])

    def other_mates(self) -> tuple[Batch, Batch, int] | None:
        """Two batches that share their first rows, and how many; None where that cannot be made."""
        size = self.probe_size
        rows = max(1, size // 2)
        if not self.shuffled or size < 2 or self.count < 2 * size - rows:
            return None
        order = self._order
        other = torch.cat([order[:rows], order[size : 2 * size - rows]])
        return self.take(order[:size]), self.take(other), rows

    def take(self, rows: Tensor) -> Batch:
        """The samples at these positions, as one batch."""
        batch = self._joined

        def picked(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows.to(tensor.device))

        labels = None if batch.labels is None else picked(batch.labels)
        return Batch(pytree.tree_map_only(Tensor, picked, batch.inputs), labels)


def _joinable(given: list[Batch]) -> bool:
    shapes = {tuple((t.shape[1:], t.dtype) for t in tensors_of(b.inputs)) for b in given}
    aligned = all(t.ndim and len(t) == b.count for b in given for t in tensors_of(b.inputs))
    structures = {str(pytree.tree_structure(batch.inputs)) for batch in given}
    return len(shapes) == 1 and len(structures) == 1 and aligned


def _join(given: list[Batch]) -> Batch:
    leaves = [pytree.tree_leaves(batch.inputs) for batch in given]
    joined = [
        torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0]
        for parts in zip(*leaves, strict=True)
    ]
    inputs = pytree.tree_unflatten(joined, pytree.tree_structure(given[0].inputs))
    labels = [batch.labels for batch in given if batch.labels is not None]
    return Batch(inputs, torch.cat(labels) if len(labels) == len(given) else None)


def collect(
    loader: Iterable[Any],
    device: torch.device,
    limit: int | None,
    split: Unpack = unpack,
    seed: int = 0,
    name: str = "loader",
) -> Samples:
    """The first `limit` batches of a loader, on the model's device.

    Raises:
        AuditError: fewer than two batches, or batches without a tensor.
    """
    given = [_batch(*split(item), device) for item in islice(loader, limit)]
    if len(given) < 2:
        raise AuditError(
            f"the {name} gave {len(given)} batch{'' if len(given) == 1 else 'es'}; an audit "
            "compares batches and needs at least 2: use a smaller batch size or more samples"
        )
    samples = Samples(given, seed)
    if samples.count < 4:
        raise AuditError(f"the {name} gave {samples.count} samples; an audit needs at least 4")
    return samples


def _batch(inputs: Any, labels: Any, device: torch.device) -> Batch:
    inputs, labels = pytree.tree_map_only(np.ndarray, torch.as_tensor, (inputs, labels))
    inputs = pytree.tree_map_only(Tensor, lambda t: t.detach().to(device), inputs)
    if not tensors_of(inputs) or not tensors_of(inputs)[0].ndim:
        raise AuditError(
            f"a batch has no input tensor [N, …], but a {type(inputs).__name__}; give `unpack`, a "
            "function from a batch of yours to (inputs, labels)"
        )
    count = len(tensors_of(inputs)[0])
    fits = isinstance(labels, Tensor) and labels.ndim >= 1 and len(labels) == count
    return Batch(inputs, labels.detach().to(device) if fits else None)
