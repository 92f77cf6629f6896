"""Batch norm that eval() does not switch, and what depends on the batch."""

import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS, Hidden, Stubborn, examine
from examples.patients import Dense, Net, data, fit, trained, vectors
from tests.auditing import gaps
from tests.auditing.conftest import codes
from tests.auditing.nets import NETS
from vshift import audit


def test_several_layers_in_the_wrong_mode_are_one_finding():
    model = Net()
    model.bn2, model.bn3 = Stubborn(8), Stubborn(8)
    (finding,) = audit(*trained(0, model)).findings
    assert (finding.code, finding.evidence["layers"]) == ("bn_wrong_mode", ["bn2", "bn3"])
    assert '"bn2", "bn3" are still in training mode after model.eval()' in finding.message


def test_a_batch_norm_made_in_forward_is_out_of_reach():
    class Builds(Net):
        def features(self, x):
            return nn.BatchNorm2d(8)(super().features(x))

    torch.manual_seed(0)
    (finding,) = [f for f in audit(Builds(), data(0, 64)).findings if f.code == "bn_out_of_reach"]
    assert finding.layer == "<BatchNorm2d>"
    assert finding.evidence["made_in_forward"]


def test_a_hidden_batch_norm_in_eval_mode_is_no_finding():
    model, batches = trained(0, Hidden(nn.BatchNorm2d(8), True))
    model.extra[0].eval()
    assert "bn_out_of_reach" not in codes(audit(model, batches))


def test_what_keeps_no_statistics_is_said_to_be_the_reason():
    (finding,) = examine(FAULTS["batch_dependent"](0, True)).findings
    assert 'first at "bn2". That layer keeps no running statistics.' in finding.message
    assert finding.evidence["batch_mates_change"] > 0


@pytest.mark.parametrize("net", NETS)
def test_what_runs_in_eval_mode_only_says_what_to_do_and_re_estimating_helps(net):
    patient = gaps.norm_only_in_eval(net, 0, True)
    result = examine(patient)
    (finding,) = result.findings
    assert finding.severity in ("medium", "high")
    assert '"bn2.norm" runs in eval mode and not in training mode' in finding.message
    assert "call the same layer in both modes" in finding.advice
    assert list(result.fixed) == ["bn2.norm"]
    patient.model.load_state_dict(result.fixed_state(patient.model))
    assert codes(examine(patient)) == []


@pytest.mark.parametrize("net", NETS)
def test_single_samples_are_scored_as_the_loader_serves_them(net):
    patient = gaps.skipped_for_one(net, 0, True)
    result = examine(patient)
    (finding,) = result.findings
    model = patient.model.eval()
    with torch.no_grad():
        right = [bool((model(x).argmax(1) == y).all()) for x, y in patient.loader]
    alone = result.scores["eval mode, one by one"]["accuracy"]
    assert alone == pytest.approx(100 * sum(right) / len(right))
    assert result.scores["eval mode"]["accuracy"] > alone + 10
    assert finding.severity == "high"
    assert "Compared with batches of 8 instead of single samples: the loss falls" in finding.message


def test_a_batch_norm_made_in_forward_is_as_grave_as_what_single_samples_lose():
    (finding,) = examine(gaps.made_in_forward("convolutional", 0, True)).findings
    assert finding.severity in ("medium", "high")
    assert "make it in __init__" in finding.advice
    assert (
        finding.evidence["explained"]["loss_before"] > finding.evidence["explained"]["loss_after"]
    )


class Pairs(Dense):
    """Two branches through the same layers."""

    def forward(self, pair):
        one, other = pair.chunk(2, 1)
        return self.head(self.features(one) + self.features(other))


def test_dependence_on_batch_mates_is_no_info_where_re_estimating_does_harm():
    """Branches of different ranges, each normalised by its own batch: one average fits neither."""
    torch.manual_seed(0)
    model, batches = Pairs(), vectors(0, 1024, 16)
    batches = [(torch.cat([x, 4 * x.flip(0)], 1), y) for x, y in batches]
    model.bn1 = nn.BatchNorm1d(32, track_running_stats=False)
    result = audit(fit(model, batches, rate=0.02), batches)
    (finding,) = result.findings
    assert (finding.code, finding.layer) == ("batch_dependent", "bn1")
    assert result.tests.mates_change > 0.1
    assert finding.gain.harms
    assert finding.severity == "medium"
