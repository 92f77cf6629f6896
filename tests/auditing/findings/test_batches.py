"""Momentum is told from batch sizes, and an unshuffled loader from training."""

import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, data, trained
from tests.auditing.conftest import codes
from vshift import audit


def test_unshuffled_evaluation_data_is_a_note_and_no_finding():
    model, batches = trained(0)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = labels.argsort()
    by_class = list(zip(images[order].split(32), labels[order].split(32), strict=True))
    result = audit(model, by_class)
    assert result.findings == []
    assert any("resemble each other" in note for note in result.notes)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_high_momentum_is_not_taken_for_tiny_batches(momentum):
    model, _ = trained(0, Net(momentum=momentum))
    few = [(x[:4, :, :3, :3], y[:4]) for x, y in data(0)]
    model.fc = nn.Linear(8, 4)
    assert codes(audit(model, few)) == ["momentum_high"]


def test_batches_that_are_tiny_at_any_momentum_are_found_too():
    patient = FAULTS["tiny_batches"](0, True)
    patient.model[4].momentum = 0.9
    assert set(codes(examine(patient))) == {"momentum_high", "tiny_batches"}
