"""What an audit concludes: culprits, severity by repair, order."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from examples.broken_models import FAULTS
from examples.patients import Net, trained
from tests.auditing.conftest import codes
from vshift import audit, recalibrate


def test_two_audits_say_the_same(shifted):
    assert audit(*shifted).to_json() == audit(*shifted).to_json()


def test_the_repair_in_the_report_is_what_recalibrating_gives(shifted):

    model, batches = shifted
    (finding,) = audit(model, batches).findings
    repair = finding.evidence["repair"]
    fixed = recalibrate(model, batches, inplace=False).eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(
            torch.cat([fixed(x) for x, _ in batches]), torch.cat([y for _, y in batches])
        )
    assert repair["loss_after"] == pytest.approx(float(loss), rel=0.02)


def test_one_corrupted_layer_is_the_only_culprit():
    model, batches = trained(1)
    model.bn2.running_mean += 2 * model.bn2.running_var.sqrt()
    result = audit(model, batches)
    assert [(f.code, f.layer, f.evidence["layers"]) for f in result.findings] == [
        ("stale", "bn2", ["bn2"])
    ]
    assert result.layers[2]["role"] == "inherits"


def test_a_shift_without_harm_is_info():
    """Severity is what the repair gives back: here nothing, as the head ignores the features."""
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.5)))
    with torch.no_grad():
        model.fc.weight.zero_()
    (finding,) = audit(model, batches).findings
    assert finding.code == "variance_shift"
    assert finding.severity == "info"
    assert "no measurable gain" in finding.message


def test_without_labels_severity_is_by_the_output():
    patient = FAULTS["never_updated"](0, True)
    (finding,) = audit(patient.model, [x for x, _ in patient.loader]).findings
    assert finding.evidence["repair"]["loss_before"] is None
    assert finding.evidence["repair"]["output_change"] > 0.5
    assert finding.severity == "high"
    notes = audit(patient.model, [x for x, _ in patient.loader]).notes
    assert any("without labels" in note for note in notes)


def test_a_loss_of_ones_own_is_used():
    patient = FAULTS["never_updated"](0, True)
    result = audit(
        patient.model,
        [(x, nn.functional.one_hot(y, 4).float()) for x, y in patient.loader],
        loss=lambda output, target: -(target * output.log_softmax(1)).sum(1),
    )
    assert result.scores["eval mode"]["loss"] > result.scores["eval mode, repaired"]["loss"]
    assert result.scores["eval mode"]["accuracy"] is None


def test_findings_come_by_harm():
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.1), after_bn=nn.Dropout(0.1)))
    model.bn3.running_var.fill_(math.nan)
    result = audit(model, batches)
    assert result.findings[0].code == "nonfinite"
    assert result.findings[0].severity == "high"
    assert result.fails("high")
    assert not audit(*trained(0)).fails("info")


def test_lazy_imports():
    import vshift

    assert vshift.audit is audit
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        _ = vshift.audits


@pytest.mark.parametrize("name", ["audit", "recalibrate", "VarianceProbe"])
def test_other_peoples_models_need_no_config_and_no_run_folder(name):
    code = f"import sys, vshift; vshift.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "vshift.auditing" in loaded
    assert not loaded & {"vshift.config", "vshift.runs", "pydantic", "yaml", "pandas"}


def test_what_fix_gives_is_no_finding():
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.7)), epochs=2)
    before = audit(model, batches)
    assert [(f.code, f.severity) for f in before.findings] == [("variance_shift", "medium")]
    fixed = copy.deepcopy(model)
    fixed.load_state_dict(before.fixed_state(model))
    assert audit(fixed, batches).findings == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_labels_the_same_is_found(seed):
    """Two repairs of the same layers: an output that moves back is no second gain."""
    model, batches = trained(seed, Net(before_bn2=nn.Dropout(0.5)), epochs=4)
    others = [(1.12 * x, y) for x, y in batches]  # a little off, as augmentation would be
    labelled = audit(model, others)
    assert codes(labelled) == ["variance_shift"]
    assert codes(audit(model, [x for x, _ in others])) == ["variance_shift"]
