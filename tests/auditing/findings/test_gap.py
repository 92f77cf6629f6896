"""What eval mode loses without a cause in running statistics is found, with its place."""

import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.broken_modes import Adapter
from tests.auditing import attacked, gaps
from tests.auditing.conftest import codes
from tests.auditing.nets import NETS, built, inputs
from vshift import audit


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_place_is_found_though_batches_differ_from_the_average(net, seed):
    """In batches of 32 vectors every batch norm's output differs by 20 % between the modes."""
    (finding,) = examine(gaps.own_norm_lost(net, seed, True)).findings
    assert (finding.code, finding.layer) == ("unexplained_gap", "after_bn")
    assert finding.severity in ("medium", "high")
    assert finding.evidence["departure"] > 1


@pytest.mark.parametrize("net", NETS)
def test_modules_that_run_in_one_mode_are_named_with_the_place(net):
    (finding,) = audit(*built(net, 0, after_bn=gaps.Branch(gaps.FEATURES[net]))).findings
    assert (finding.code, finding.layer) == ("unexplained_gap", "after_bn")
    assert '"after_bn.one" runs in training mode only.' in finding.message
    assert '"after_bn.other" runs in eval mode only.' in finding.message


class Shifted(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return x if self.training else x + self.shift


@pytest.mark.parametrize(
    ("shift", "count", "severity"), [(0.27, 4096, "low"), (0.09, 16384, "info"), (0.05, 4096, None)]
)
def test_a_small_loss_beyond_chance_is_a_finding_at_its_place(shift, count, severity):
    """A mean square of 1.07 against 1, or of 1.008 in many samples; 1.0025 in a few is chance."""
    torch.manual_seed(0)
    model, rows = nn.Sequential(nn.Linear(20, 1), Shifted(shift)), torch.randn(count, 20)
    targets = model(rows).detach() + torch.randn(count, 1)
    loader = list(zip(rows.chunk(64), targets.chunk(64), strict=True))
    found = audit(model, loader, loss=gaps.squared_error, samples=None).findings
    expected = [("unexplained_gap", "1", severity)] if severity else []
    assert [(f.code, f.layer, f.severity) for f in found] == expected


def test_what_averages_that_lag_cost_is_a_note():
    """After 48 steps the statistics are of older weights; they fit as well as they can."""
    found = examine(FAULTS["batches_not_random"](502, False))
    assert found.gap.severity == "medium"
    assert found.findings == []
    (note,) = [note for note in found.notes if note.startswith("eval mode loses a little")]
    assert "running averages, which are noisy and lag behind the weights, make most of it" in note
    assert "(re-estimating all 3 batch norms: the loss falls from" in note


def test_norms_for_adversarial_samples_are_a_note_that_says_what_they_give(monkeypatch):
    monkeypatch.setattr(attacked, "STEP", 1.0)
    found = examine(attacked.advprop("convolutional", 0, False))
    assert found.gap.severity in ("medium", "high")
    assert found.findings == []
    (note,) = [note for note in found.notes if "in training mode only" in note]
    assert note.startswith('"bn1.auxiliary", "bn2.auxiliary", "bn3.auxiliary" run in training')
    assert "with them: the loss falls from" in note


def test_one_layer_with_another_inside_is_measured_by_its_own_part():
    """Its running statistics are of the first half of a batch."""
    found = examine(attacked.advprop_in_one_layer(0))
    assert codes(found) == []
    assert all(row["distance"] < row["limit"] for row in found.layers)


def test_a_fault_beside_norms_for_adversarial_samples_is_found():
    torch.manual_seed(0)
    model = attacked.split(NETS["MLP"](), attacked.Split)
    model.fc = Adapter(32, 4)
    loader = attacked.train(model, inputs("MLP", 0), attacked.in_halves)
    model.fc.merges_transposed = True
    assert codes(audit(model, loader)) == ["unexplained_gap"]
