"""Calibration of a classifier: how well its probabilities say how often it is right.

With probabilities p [N, K] and labels y [N]:

    NLL     −mean log p[y]: the negative log-likelihood, in nats
    Brier   mean Σₖ (pₖ − [k = y])²: summed over the classes, 0 to 2 (Brier 1950, equation 2)
    ECE     Σ_b (n_b/N)·|accuracy_b − confidence_b|, the expected calibration error: over 15 bins of
            equal width of the top probability, the confidence (Guo et al. 2017, arXiv 1706.04599,
            equation 3)

NLL and Brier score are proper: they are best for the true probabilities. The ECE is not, and is
biased upwards where bins hold few images, but it alone is 0 for every calibrated classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """NLL in nats, Brier score from 0 to 2, ECE in percent."""

    nll: float
    brier: float
    ece: float


class CalibrationSums:
    """Sums of the calibration scores of batches, on the device and without a synchronisation."""

    def __init__(self, device: torch.device | str) -> None:
        # Of Guo's bins (m − 1)/15 < p ≤ m/15 the inner edges, each rounded once.
        self._edges = torch.arange(1, BINS, dtype=torch.float64, device=device) / BINS
        # Per bin the images, their confidences and right answers; of all −log p[y] and distances.
        self._bins = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch: logarithms of probabilities [N, K], and the classes [N] that are right."""
        logs = log_probabilities.double()
        probabilities = logs.exp()
        classes = torch.arange(logs.shape[1], device=logs.device)
        distances = (probabilities - (classes == labels[:, None]).double()).square().sum(1)
        surprises = -logs.gather(1, labels[:, None])[:, 0]
        self._sums += torch.stack([surprises.sum(), distances.sum()])
        confidences, answers = probabilities.max(1)
        values = [torch.ones_like(confidences), confidences, (answers == labels).double()]
        bins = torch.bucketize(confidences, self._edges)
        # A product, not index_add_: on CUDA that sums in any order, and runs would differ in bits.
        is_in = bins == torch.arange(BINS, device=bins.device)[:, None]
        self._bins += is_in.double() @ torch.stack(values, 1)

    def compute(self) -> Calibration | None:
        """The scores of all batches so far; None without an image."""
        count, confidence, right = self._bins.cpu().unbind(1)
        images = float(count.sum())
        if not images:
            return None
        surprise, distance = self._sums.tolist()
        gaps = float((right - confidence).abs().sum())
        return Calibration(surprise / images, distance / images, 100 * gaps / images)
