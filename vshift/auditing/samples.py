"""Batches of a loader, collected once so that every pass sees the same samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset

from vshift.errors import VShiftError
from vshift.text import pluralize

LEAST_SAMPLES = 4
LEAST_BATCHES = 8  # if there are as many: errors are estimated between batches
LABEL_KEYS = ("labels", "label", "targets", "target")
Unpack = Callable[[Any], tuple[Any, Any]]


class AuditError(VShiftError):
    """This model or this loader cannot be audited. Exit code 2."""


class UnknownBatch(AuditError):
    """What of a batch is the model's input cannot be known: `unpack` has to say it."""


@dataclass(frozen=True)
class Batch:
    """Inputs as the model takes them, and labels [N, …] or None."""

    inputs: Any
    labels: Tensor | None

    @property
    def count(self) -> int:
        """Samples: the length of the labels, or else of the first tensor, or else 1."""
        known = [self.labels] if self.labels is not None else tensors_of(self.inputs)
        return next((len(t) for t in known if t.ndim), 1)

    def select(self, pick: Callable[[Tensor], Tensor]) -> Batch:
        """The samples that `pick` takes from each tensor."""
        labels = None if self.labels is None else pick(self.labels)
        return Batch(pytree.tree_map_only(Tensor, pick, self.inputs), labels)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def unpack(batch: Any) -> tuple[Any, Any]:
    """Split a loader's usual batch into (inputs, labels or None).

    A tensor is inputs; of a tuple or list the first item is inputs and the second labels; of a
    mapping the entry `labels`, `label`, `targets` or `target` is labels and the rest inputs.
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
        return inputs, next((batch[key] for key in LABEL_KEYS if key in batch), None)
    if isinstance(batch, tuple | list) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a mapping gives keyword arguments, a tuple or list positional ones.

    A mapping with a single tensor, whose name forward() does not know, gives that tensor.

    Raises:
        AuditError: several tensors of a mapping, one of which forward() has no argument for.
    """
    if isinstance(inputs, Mapping):
        parameters = inspect.signature(model.forward).parameters
        unknown = [name for name in inputs if name not in parameters]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not unknown or takes_any:
            return model(**inputs)
        tensors = tensors_of(inputs)
        if len(tensors) == 1:
            return model(tensors[0])
        raise UnknownBatch(
            f"forward({', '.join(parameters)}) has no arguments for a batch's entries "
            f"{', '.join(f'`{name}`' for name in unknown)}: a batch that is a mapping gives its "
            f"entries by name, without {', '.join(f'`{key}`' for key in LABEL_KEYS)}; give "
            "`unpack=`, a function from a batch to (inputs, labels), or a loader of "
            "(inputs, labels)"
        )
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def main_output(output: Any) -> Tensor:
    """The output that is scored: the entry `logits` or `out`, otherwise the first float tensor.

    Raises:
        AuditError: there is none, or only one number for the whole batch.
    """
    if isinstance(output, Tensor):
        if not output.ndim:
            raise AuditError(
                "the model's output is one number for the whole batch, probably a loss; an audit "
                "needs an output per sample, [N, …]"
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
    """Batches of one loader, in its own order and, if their rows are samples, in a random order.

    Attributes:
        batches: as the loader gave them.
        batch_size: samples in the loader's first batch.
        count: samples in all.
        rows_are_samples: whether the first dimension of every tensor counts samples, so that
            batches may be cut and mixed; until `AuditedModel.rows_are_samples` has tried it, as far
            as shapes tell.
    """

    def __init__(self, batches: list[Batch], seed: int) -> None:
        self.batches = batches
        self.batch_size = batches[0].count
        self.count = sum(batch.count for batch in batches)
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(self.count, generator=generator)
        self._joined = _join(batches)
        self.rows_are_samples = self._joined is not None

    @property
    def shuffled_size(self) -> int:
        """Samples per shuffled batch: as in the loader, but at least 8 if that was 1."""
        if not self.rows_are_samples:
            return self.batch_size
        return min(self.batch_size if self.batch_size > 1 else 8, self.count // 2 or 1)

    def shuffled(self) -> Iterator[Batch]:
        """Batches of one size, the same at every call; a smaller rest is dropped.

        Where rows are not samples, the batches as they come.
        """
        if not self.rows_are_samples:
            yield from self.batches
            return
        size = self.shuffled_size
        for start in range(0, self.count - size + 1, size):
            yield self._take(self._order[start : start + size])

    def first(self) -> Batch:
        """The first shuffled batch."""
        return next(iter(self.shuffled()))

    def few(self, count: int) -> Batch:
        """The first samples of the first shuffled batch; all of it where rows are not samples."""
        first = self.first()
        return first.select(lambda tensor: tensor[:count]) if self.rows_are_samples else first

    def with_other_mates(self) -> tuple[Batch, Batch, int] | None:
        """Two batches that share their first rows, and the number of those; None if impossible."""
        size = self.shuffled_size
        rows = max(1, size // 2)
        if not self.rows_are_samples or size < 2 or self.count < 2 * size - rows:
            return None
        order = self._order
        other = torch.cat([order[:rows], order[size : 2 * size - rows]])
        return self._take(order[:size]), self._take(other), rows

    def alone(self, count: int) -> list[Batch]:
        """The first samples of the first shuffled batch, each in one of its own; or none."""
        if not self.rows_are_samples or self.shuffled_size < 2:
            return []
        return [self._take(row) for row in self._order[:count, None]]

    def _take(self, rows: Tensor) -> Batch:
        assert self._joined is not None
        return self._joined.select(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))


def _join(batches: list[Batch]) -> Batch | None:
    """All batches concatenated; None if their shapes, types or structures differ."""
    shapes = {tuple((t.shape[1:], t.dtype) for t in tensors_of(b.inputs)) for b in batches}
    aligned = all(t.ndim and len(t) == b.count for b in batches for t in tensors_of(b.inputs))
    aligned &= all(tensors_of(b.inputs) for b in batches)
    structures = {str(pytree.tree_structure(batch.inputs)) for batch in batches}
    if len(shapes) > 1 or len(structures) > 1 or not aligned:
        return None
    leaves = [pytree.tree_leaves(batch.inputs) for batch in batches]
    joined = [
        torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0]
        for parts in zip(*leaves, strict=True)
    ]
    inputs = pytree.tree_unflatten(joined, pytree.tree_structure(batches[0].inputs))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Batch(inputs, torch.cat(labels) if len(labels) == len(batches) else None)


def collect(
    loader: Iterable[Any],
    device: torch.device,
    limit: int | None,
    unpack: Unpack = unpack,
    seed: int = 0,
    name: str = "loader",
    enough: int | None = None,
) -> Samples:
    """The first `limit` batches of a loader, on the model's device.

    Args:
        enough: a number of samples; without a limit, batches that follow these are left out.

    Raises:
        AuditError: fewer than two batches, batches without a tensor, or no batches but single
            samples.
    """
    if limit is not None and limit < 2:
        raise AuditError(f"batches is {limit}; an audit compares batches and needs at least 2")
    if enough is not None and enough < LEAST_SAMPLES:
        raise AuditError(f"samples is {enough}; an audit needs at least {LEAST_SAMPLES}")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise AuditError(
            f"the {name} is a data set, which gives single samples; wrap it: "
            "torch.utils.data.DataLoader(data_set, batch_size=…, shuffle=True)"
        )
    batches: list[Batch] = []
    count = 0
    for item in islice(loader, limit):
        inputs, labels = unpack(item)
        if _is_detection(inputs, labels):
            raise UnknownBatch(
                f"the {name} gives lists of images and of targets, as for detection, and a list is "
                "given to the model as positional arguments; say how it is called with `unpack=`, "
                "for instance `unpack=lambda batch: ((list(batch[0]),), None)`"
            )
        inputs, labels = pytree.tree_map_only(np.ndarray, torch.as_tensor, (inputs, labels))
        inputs = pytree.tree_map_only(Tensor, lambda t: t.detach().to(device), inputs)
        if not tensors_of(inputs):
            if not hasattr(inputs, "to"):  # a graph library's batch is an object that has it
                raise UnknownBatch(
                    f"a batch has no input tensor [N, …], but a {type(inputs).__name__}; give "
                    "`unpack`, a function from your batch to (inputs, labels)"
                )
            inputs = inputs.to(device)
        fits = isinstance(labels, Tensor) and labels.ndim
        batches.append(Batch(inputs, labels.detach().to(device) if fits else None))
        count += batches[-1].count
        is_enough = enough is not None and count >= enough and len(batches) >= LEAST_BATCHES
        if limit is None and is_enough:
            break
    if len(batches) < 2:
        raise AuditError(
            f"the {name} gave {pluralize(len(batches), 'batch', 'batches')}; an audit compares "
            "batches and needs at least 2: use a smaller batch size or more samples"
        )
    samples = Samples(batches, seed)
    if samples.rows_are_samples and samples.count < LEAST_SAMPLES:
        raise AuditError(
            f"the {name} gave {samples.count} samples; an audit needs at least {LEAST_SAMPLES}"
        )
    return samples


def _is_detection(inputs: Any, labels: Any) -> bool:
    """Whether a batch is a list of images and a list of mappings."""
    return (
        isinstance(inputs, tuple | list)
        and isinstance(labels, tuple | list)
        and all(isinstance(image, Tensor) for image in inputs)
        and any(isinstance(target, Mapping) for target in labels)
    )


# ---- are the loader's batches random samples?

PERMUTATIONS = 200
MOST_CLASSES = 1000  # larger labels are not taken for classes


def order_effect(samples: Samples, seed: int) -> tuple[float, bool]:
    """How much more the loader's batches differ than random ones (1: random), and if that is clear.

    A permutation test over the samples' channel means, standard deviations and labels. Clear is
    above all of 200 random regroupings, and twice their average.
    """
    features = _features(samples) if samples.rows_are_samples else None
    if features is None or len(samples.batches) < 2:
        return 1.0, False
    groups = torch.repeat_interleave(
        torch.arange(len(samples.batches)), torch.tensor([b.count for b in samples.batches])
    )
    generator = torch.Generator().manual_seed(seed)
    observed = _between_groups(features, groups)
    random = [
        _between_groups(features, groups[torch.randperm(len(groups), generator=generator)])
        for _ in range(PERMUTATIONS)
    ]
    effect = observed / (sum(random) / PERMUTATIONS)
    return effect, observed > max(random) and effect > 2


def _between_groups(features: Tensor, groups: Tensor) -> float:
    """Mean square of the groups' means, weighted by their sizes."""
    count = int(groups.max()) + 1
    sums = torch.zeros(count, features.shape[1], dtype=features.dtype)
    sums.index_add_(0, groups, features)
    sizes = torch.bincount(groups, minlength=count).double()[:, None]
    return float((sums.square() / sizes).sum()) / (count * features.shape[1])


def _features(samples: Samples) -> Tensor | None:
    """Channel means, deviations and one-hot labels [n, F], standardized; None if none varies."""
    rows = []
    for batch in samples.batches:
        x = tensors_of(batch.inputs)[0]
        x = x.double().flatten(2 if x.ndim >= 3 else 1)
        x = x if x.ndim == 3 else x[:, :, None]
        parts = [x.mean(2), x.std(2, correction=0)] if x.shape[2] > 1 else [x[:, :, 0]]
        rows.append(torch.cat(parts, 1).cpu())
    features = torch.cat(rows)
    labels = [batch.labels for batch in samples.batches if batch.labels is not None]
    if len(labels) == len(samples.batches) and all(
        rows.ndim == 1 and not rows.is_floating_point() for rows in labels
    ):
        classes = torch.cat(labels).long().cpu()
        if int(classes.min()) >= 0 and int(classes.max()) < MOST_CLASSES:
            features = torch.cat([features, F.one_hot(classes).double()], 1)
    features = features[:, features.std(0, correction=0) > 1e-12]
    if not features.numel():
        return None
    return (features - features.mean(0)) / features.std(0, correction=0)
