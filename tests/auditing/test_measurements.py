"""What is measured before anything is concluded: scores of every mode on the same samples."""

import pytest
import torch
from torch import nn

from examples.patients import Net, data, fit, trained
from vshift import audit

BOTH = ["train mode", "batch statistics without noise", "eval mode"]  # nothing is repaired here


def by_hand(model, batches):
    with torch.no_grad():
        output = torch.cat([model(x) for x, _ in batches])
    return float(nn.functional.cross_entropy(output, torch.cat([y for _, y in batches])))


@pytest.fixture(scope="module")
def overfitted():
    """A net that knows 64 images by heart, those images, and others."""
    torch.manual_seed(0)
    return fit(Net(), data(0, 64), epochs=20), data(0, 64), data(1, 256)


def test_every_mode_is_scored_on_the_loaders_samples(overfitted):
    """The training loader's own scores stand beside, under names of their own."""
    model, batches, others = overfitted
    scores = audit(model, others, train_loader=batches).scores
    assert list(scores) == [*BOTH, "train mode, training data", "eval mode, training data"]
    model.eval()
    assert scores["eval mode"]["loss"] == pytest.approx(by_hand(model, others), rel=1e-3)
    known = scores["eval mode, training data"]
    assert known["loss"] == pytest.approx(by_hand(model, batches), rel=1e-3)
    assert scores["train mode"]["loss"] == pytest.approx(scores["eval mode"]["loss"], rel=0.2)
    assert scores["train mode"]["loss"] > 5 * scores["train mode, training data"]["loss"]
    assert known["accuracy"] == 100


def test_one_loader_is_scored_once(overfitted):
    model, _, others = overfitted
    assert list(audit(model, others).scores) == BOTH


def test_a_mode_that_does_not_run_on_the_loaders_samples_is_a_note():
    """A batch of one image behind a batch norm of vectors, in batches that cannot be joined."""
    model, batches = trained(0)
    model.fc = nn.Sequential(model.fc, nn.BatchNorm1d(4))
    (x, y), (last, its) = batches[:2]
    odd = [(x, y), (x[:1], y[:1]), (nn.functional.pad(last, (0, 1)), its)]
    result = audit(model, odd, train_loader=batches)
    assert "train mode" not in result.scores
    assert any("train mode could not be scored" in note for note in result.notes)
    assert result.scores["eval mode"]["loss"] is not None
