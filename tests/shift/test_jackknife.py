"""Pooled variances and their jackknife errors, against float64 by hand."""

import math

import pytest
import torch

from vshift.shift.jackknife import Means, Variances, estimate


def test_levels_are_the_pooled_variances_of_all_and_of_all_but_one_batch():
    torch.manual_seed(0)
    batches = [torch.randn(n, 3, 4) * (i + 1) + i for i, n in enumerate((5, 8, 2))]
    stack = Variances()
    for batch in batches:
        stack.add(batch)
    for i, level in enumerate(stack.levels().tolist()):
        kept = torch.cat([b for j, b in enumerate(batches) if j != i - 1]).double()
        assert level == pytest.approx(kept.var((0, 2), correction=0).mean().item(), rel=1e-6)


def test_means_are_weighted_by_their_counts():
    means = Means()
    means.add(torch.tensor([1.0, 3.0]).double(), 10)
    means.add(torch.tensor([4.0, 6.0]).double(), 30)
    assert means.levels().tolist() == pytest.approx([(2 * 10 + 5 * 30) / 40, 5, 2])


def test_jackknife_error_of_a_mean_is_its_standard_error():
    torch.manual_seed(0)
    rows = torch.randn(25).double()
    means = Means()
    for value in rows:
        means.add(value[None], 1)
    found = estimate(means.levels())
    assert found.value == pytest.approx(rows.mean().item())
    assert found.error == pytest.approx(rows.std().item() / 5)


def test_one_batch_has_no_error():
    means = Means()
    means.add(torch.ones(1).double(), 1)
    assert math.isnan(estimate(means.levels()).error)
