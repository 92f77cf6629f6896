"""Calibration scores against their definitions, computed by hand in float64."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vshift.shift.calibration import BINS, CalibrationSums


def by_hand(logits, labels):
    """NLL, Brier score and ECE in percent, image by image and bin by bin."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    images = range(len(labels))
    nll = -sum(math.log(probabilities[i, labels[i]]) for i in images) / len(labels)
    brier = sum(
        sum((p - (k == labels[i])) ** 2 for k, p in enumerate(probabilities[i])) for i in images
    ) / len(labels)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    ece = 0.0
    for m in range(1, BINS + 1):
        own = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        if own.any():
            ece += own.mean() * abs(right[own].mean() - confidence[own].mean())
    return nll, brier, 100 * ece


def torchmetrics_ece(confidences, accuracies):
    """Percent, as torchmetrics bins and averages: bucketize over 16 edges, nan_to_num of means."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidences.dtype)
    indices = torch.bucketize(confidences, edges) - 1
    count, confidence, accuracy = (
        torch.zeros(BINS, dtype=confidences.dtype).scatter_add_(0, indices, values)
        for values in (torch.ones_like(confidences), confidences, accuracies)
    )
    gaps = torch.nan_to_num(accuracy / count) - torch.nan_to_num(confidence / count)
    return 100 * float((gaps.abs() * count / count.sum()).sum())


def scores_of(logits, labels, sizes=None):
    sums = CalibrationSums("cpu")
    for part, answers in zip(
        logits.split(sizes or len(labels)), labels.split(sizes or len(labels)), strict=True
    ):
        sums.add(part.log_softmax(1), answers)
    return sums.compute()


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_scores_are_those_computed_by_hand(classes, scale):
    g = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(311, classes, generator=g)
    labels = torch.where(
        torch.rand(311, generator=g) < 0.5, logits.argmax(1), torch.randint(classes, (311,))
    )
    found = scores_of(logits.double(), labels, [100, 100, 100, 11])
    nll, brier, ece = by_hand(logits.numpy(), labels.numpy())
    assert found.nll == pytest.approx(nll, rel=1e-12)
    assert found.brier == pytest.approx(brier, rel=1e-12)
    assert found.ece == pytest.approx(ece, rel=1e-10)
    probabilities = logits.double().softmax(1)
    right = (logits.argmax(1) == labels).double()
    theirs = torchmetrics_ece(probabilities.max(1).values, right)
    assert found.ece == pytest.approx(theirs, rel=1e-10)


def test_nll_is_the_cross_entropy_and_ties_go_to_the_first_class():
    logits, labels = torch.zeros(8, 3), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    found = scores_of(logits, labels)
    assert found.nll == pytest.approx(math.log(3))
    assert found.brier == pytest.approx(4 / 9 + 2 / 9)
    assert found.ece == pytest.approx(100 * (0.5 - 1 / 3), rel=1e-6)


def test_a_confidence_on_an_edge_is_in_the_bin_below_it():
    """Of confidences 0.6 = 9/15 and a little more: the first is right, the second is not."""
    top = torch.tensor([9 / 15, 9 / 15 + 1e-3], dtype=torch.float64)
    sums = CalibrationSums("cpu")
    sums.add(torch.stack([top, 1 - top], 1).log(), torch.tensor([0, 1]))
    # In one bin the gap would be |½ − 0.6005|.
    assert sums.compute().ece == pytest.approx(100 * (0.4 + 0.601) / 2, rel=1e-9)


def test_a_calibrated_classifier_has_no_ece_and_a_sure_one_has_its_error():
    g = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(40_000, 5, generator=g)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    # Each bin's gap is of the order √(p(1 − p)/n_b): under half a point for 40,000 images.
    assert scores_of(logits, labels).ece < 0.7
    sure = scores_of(1000 * logits.double(), labels)
    error = 100 * float((logits.argmax(1) != labels).double().mean())
    assert sure.ece == pytest.approx(error, abs=0.1)
    assert sure.brier == pytest.approx(2 * error / 100, abs=0.01)


def test_a_class_of_probability_0_costs_infinitely_much():
    sums = CalibrationSums("cpu")
    sums.add(torch.tensor([[0.0, -math.inf]]), torch.tensor([1]))
    found = sums.compute()
    assert found.nll == math.inf
    assert (found.brier, found.ece) == (2, 100)


def test_outputs_that_are_not_numbers_give_scores_that_are_none():
    found = scores_of(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long))
    assert math.isnan(found.nll)
    assert math.isnan(found.ece)


def test_without_images_there_are_no_scores():
    assert CalibrationSums("cpu").compute() is None


def test_adding_a_batch_never_waits_for_the_device():
    """What copies a value to the host is `_local_scalar_dense`, `nonzero` and their like."""
    called = []

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    sums, logits = CalibrationSums("cpu"), torch.randn(8, 3).log_softmax(1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    with Recording():
        sums.add(logits, labels)
    assert "bucketize" in called
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_to_copy_cpu"}
    assert not waiting & set(called)
