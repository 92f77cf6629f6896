"""Ratios of pooled variances with standard errors, by leaving out one batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vshift.shift.moments import batch_moments


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over batches (jackknife); NaN where there is none."""

    value: float
    error: float


class Variances:
    """Per batch: count, mean [C] and sum of squared distances [C], to pool and to leave one out."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.counts: list[int] = []

    def add(self, x: Tensor) -> None:
        mean, variance = batch_moments(x)
        count = x.numel() // x.shape[1]
        self.rows.append((mean, variance * count))
        self.counts.append(count)

    def levels(self) -> Tensor:
        """Channel mean of the pooled variance, over all batches and leaving each out: [1 + B]."""
        mean = torch.stack([row[0] for row in self.rows]).cpu()
        squares = torch.stack([row[1] for row in self.rows]).cpu()
        counts, keep = _weights(self.counts)
        total = keep @ counts
        centre = keep @ (counts * mean) / total
        second = keep @ (counts * mean.square())
        return ((keep @ squares + second) / total - centre.square()).mean(1)


class Means:
    """The same for a mean over values, such as s² Σ w² E[x²]: batches' means [C], weighted."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.counts: list[int] = []

    def add(self, row: Tensor, count: int) -> None:
        self.rows.append(row)
        self.counts.append(count)

    def levels(self) -> Tensor:
        rows = torch.stack(self.rows).cpu()
        counts, keep = _weights(self.counts)
        return (keep @ (counts * rows) / (keep @ counts)).mean(1)


def _weights(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Counts [B, 1], and which batches each of the 1 + B pools keeps, [1 + B, B] of 0 and 1."""
    column = torch.tensor(counts, dtype=torch.float64)[:, None]
    every = torch.ones(1, len(counts), dtype=torch.float64)
    return column, torch.cat([every, 1 - torch.eye(len(counts), dtype=torch.float64)])


def estimate(levels: Tensor) -> Estimate:
    """Value and jackknife standard error from [all, without batch 1, without batch 2, …]."""
    parts = levels[1:]
    if len(parts) < 2:
        return Estimate(float(levels[0]), math.nan)
    spread = (parts - parts.mean()).square().sum() * (len(parts) - 1) / len(parts)
    return Estimate(float(levels[0]), float(spread.sqrt()))
