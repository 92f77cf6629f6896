"""Batch norm that eval() does not switch, and what depends on the batch."""

import torch
from torch import nn

from examples.broken_models import FAULTS, Hidden, Stubborn, examine
from examples.patients import Net, data, trained
from tests.auditing.conftest import codes
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
