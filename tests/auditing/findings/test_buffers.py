"""Statistics that are broken, copied or stale; and what is said if the inputs explain it."""

import copy

import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, data, fit, norms, trained, vectors
from tests.auditing.conftest import codes
from vshift import audit


def test_a_reference_tells_buffers_that_were_never_copied():
    model, batches = trained(0)
    old = copy.deepcopy(model.state_dict())
    fit(model, [(2 * x, y) for x, y in batches])
    model.load_state_dict({k: v for k, v in old.items() if "running" in k}, strict=False)
    result = audit(model, [(2 * x, y) for x, y in batches], reference=old)
    (finding,) = result.findings
    assert finding.code == "stale"
    assert "still holds the reference's buffers" in finding.message


def test_a_training_loader_is_asked_for_only_where_there_is_none():
    patient = FAULTS["stale"](7, True)
    alone = examine(patient).findings[0].message
    given = audit(patient.model, patient.loader, train_loader=patient.loader).findings[0].message
    assert "Pass train_loader= (--train-data): if the statistics fit" in alone
    assert "Pass train_loader=" not in given
    assert "These inputs are the training data's: the statistics are wrong" in given


def test_a_negative_running_variance_is_as_bad_as_nan():
    """As task arithmetic or averaging with negative factors leave it."""
    model, batches = trained(0)
    model.bn2.running_var[2] = -1.0
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer, finding.severity) == ("nonfinite", "bn2", "high")


def test_a_simple_average_over_old_batches_is_told():
    model, batches = trained(0, Net(momentum=None))
    with torch.no_grad():  # as after a long training on other data
        for layer in (model.bn1, model.bn2, model.bn3):
            layer.running_mean += 2 * layer.running_var.sqrt()
            layer.num_batches_tracked.fill_(10_000)
    (finding,) = audit(model, batches).findings
    assert finding.code == "stale"
    assert "over all 10,000 batches since the statistics were reset" in finding.message


def test_augmented_training_data_make_a_note_and_no_finding():
    """Statistics of other inputs that do no harm, without a training loader to tell."""
    model, batches = trained(0)
    with torch.no_grad():
        model.fc.weight.zero_()  # nothing does harm
        model.bn1.running_mean += model.bn1.running_var.sqrt()
    result = audit(model, batches)
    assert result.findings == []
    assert any("without measurable harm" in note for note in result.notes)
    assert codes(audit(model, batches, train_loader=batches)) == ["stale"]


def test_inputs_do_not_explain_a_later_layer_alone():
    """The first layer fits: what the second meets in training is what these inputs show."""
    model, batches = trained(0)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.bn2.running_mean += model.bn2.running_var.sqrt()
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer, finding.severity) == ("stale", "bn2", "info")


def test_statistics_frozen_at_their_first_values_are_a_note():
    """Eval mode is what training was: nothing is lost, and nothing is found."""
    torch.manual_seed(0)
    model = Net()
    hook = model.bn2.register_forward_pre_hook(lambda layer, _: layer.eval() and None)
    fit(model, batches := data(0))
    hook.remove()
    result = audit(model.eval(), batches)
    assert "never_updated" not in codes(result)
    assert any("(--weights), or they are frozen on purpose" in note for note in result.notes)


def test_what_overflows_in_low_precision_is_as_grave_as_what_it_costs():
    """Re-estimating does not fit into the type, so it gains nothing; the loss is as large."""
    model, batches = trained(0)
    with torch.no_grad():
        model.conv2.weight *= 1000
        model.conv2.bias *= 1000
        model.bn2.running_var.fill_(float("inf"))
        model.bn2.running_mean *= 1000
    half = [(x.half(), y) for x, y in batches]
    (finding,) = audit(model.half(), half).findings
    assert (finding.code, finding.severity) == ("nonfinite", "high")
    assert "float16 ends at 65,504: re-estimating does not help." in finding.message
    assert finding.advice == "keep that layer in float32"


def deep(convolutional: bool) -> nn.Module:
    """Ten linear or convolutional layers, each with its batch norm."""
    layers: list[nn.Module] = []
    for i in range(10):
        if convolutional:
            layers += [nn.Conv2d(12 if i else 3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
        else:
            layers += [nn.Linear(64 if i else 20, 64), nn.BatchNorm1d(64), nn.ReLU()]
    pool = [nn.AvgPool2d(2)] if convolutional else []
    return nn.Sequential(*layers, *pool, nn.Flatten(), nn.Linear(192 if convolutional else 64, 4))


@pytest.mark.parametrize("convolutional", [False, True])
def test_small_errors_that_do_harm_together_are_found(convolutional):
    """No layer is off by as much as 0.1, and healthy ones by up to 0.03."""
    torch.manual_seed(0)
    batches = data(0, 1024, 64) if convolutional else vectors(0, 2048, 128)
    model = fit(deep(convolutional), batches, epochs=5, rate=0.02 if convolutional else 0.05)
    assert audit(model, batches).findings == []
    with torch.no_grad():
        for layer in norms(model).values():
            layer.running_mean += 0.08 * layer.running_var.sqrt()
    result = audit(model, batches)
    (finding,) = result.findings
    assert finding.code == "stale"
    assert max(row["distance"] for row in result.layers) < 0.1
    assert finding.severity in ("medium", "high")
    assert finding.gain.loss_after < 0.7 * finding.gain.loss_before


def test_small_errors_without_harm_are_silent():
    model, batches = trained(0)
    with torch.no_grad():
        for layer in norms(model).values():
            layer.running_mean += 0.08 * layer.running_var.sqrt()
        model.fc.weight *= 0
    assert audit(model, batches).findings == []
