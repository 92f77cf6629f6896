"""Statistics that are broken, copied or stale; and what is said if the inputs explain it."""

import copy

import torch

from examples.broken_models import FAULTS, examine
from examples.patients import Net, fit, trained
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
    assert "still hold the reference's buffers" in finding.message


def test_a_training_loader_is_asked_for_only_where_there_is_none():
    patient = FAULTS["stale"](7, True)
    alone = examine(patient).findings[0].message
    given = audit(patient.model, patient.loader, train_loader=patient.loader).findings[0].message
    assert "A training loader would distinguish" in alone
    assert "raining loader would distinguish" not in given


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
    assert "over all 10000 batches since the statistics were reset" in finding.message


def test_augmented_training_data_make_a_note_and_no_finding():
    """Statistics of other inputs that do no harm, without a training loader to tell."""
    model, batches = trained(0)
    with torch.no_grad():
        model.fc.weight.zero_()  # nothing does harm
        model.bn1.running_mean += model.bn1.running_var.sqrt()
    result = audit(model, batches)
    assert result.findings == []
    assert any("does no measurable harm" in note for note in result.notes)
    assert codes(audit(model, batches, train_loader=batches)) == ["stale"]


def test_inputs_do_not_explain_a_later_layer_alone():
    """The first layer fits: what the second meets in training is what these inputs show."""
    model, batches = trained(0)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.bn2.running_mean += model.bn2.running_var.sqrt()
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer, finding.severity) == ("stale", "bn2", "info")
