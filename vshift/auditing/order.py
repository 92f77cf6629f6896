"""Whether a loader's batches are random samples, by comparing them with random regroupings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vshift.auditing.samples import Samples, tensors_of

ROUNDS = 200
CLASSES = 1000  # more labels than these are no classes


def order_effect(samples: Samples, seed: int) -> tuple[float, bool]:
    """How much more batches differ than random ones (1 is random), and if that is beyond doubt.

    A permutation test over samples: their channels' means and standard deviations, and their
    labels. Beyond doubt is above all of 200 random regroupings, and twice what is expected.
    """
    features = _features(samples) if samples.shuffled else None
    if features is None or len(samples.given) < 2:
        return 1.0, False
    groups = torch.repeat_interleave(
        torch.arange(len(samples.given)), torch.tensor([b.count for b in samples.given])
    )
    generator = torch.Generator().manual_seed(seed)
    found = _between(features, groups)
    random = [
        _between(features, groups[torch.randperm(len(groups), generator=generator)])
        for _ in range(ROUNDS)
    ]
    effect = found / (sum(random) / ROUNDS)
    return effect, found > max(random) and effect > 2


def _between(features: Tensor, groups: Tensor) -> float:
    """Mean square of the groups' means, weighted by their sizes."""
    count = int(groups.max()) + 1
    sums = torch.zeros(count, features.shape[1], dtype=features.dtype).index_add_(
        0, groups, features
    )
    sizes = torch.bincount(groups, minlength=count).double()[:, None]
    return float((sums.square() / sizes).sum()) / (count * features.shape[1])


def _features(samples: Samples) -> Tensor | None:
    """[n, F], each feature with mean 0 and variance 1; None where nothing varies."""
    parts = []
    for batch in samples.given:
        x = tensors_of(batch.inputs)[0].double().flatten(2 if _has_channels(batch.inputs) else 1)
        x = x if x.ndim == 3 else x[:, :, None]
        rows = [x.mean(2), x.std(2, correction=0)] if x.shape[2] > 1 else [x[:, :, 0]]
        parts.append(torch.cat(rows, 1).cpu())
    features = torch.cat(parts)
    labels = _labels(samples)
    features = features if labels is None else torch.cat([features, labels], 1)
    spread = features.std(0, correction=0)
    features = features[:, spread > 1e-12]
    if not features.numel():
        return None
    return (features - features.mean(0)) / features.std(0, correction=0)


def _has_channels(inputs: object) -> bool:
    return tensors_of(inputs)[0].ndim >= 3


def _labels(samples: Samples) -> Tensor | None:
    rows = [batch.labels for batch in samples.given]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows) or any(r.ndim != 1 or r.is_floating_point() for r in found):
        return None
    labels = torch.cat(found).long().cpu()
    if int(labels.min()) < 0 or int(labels.max()) >= CLASSES:
        return None
    return F.one_hot(labels).double()
