"""Which of two explanations a finding takes, and what it says where it cannot know."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, data, fit, trained
from vshift import audit, recalibrate


def codes(result):
    return [finding.code for finding in result.findings]


@pytest.fixture(scope="module")
def shifted():
    return trained(0, Net(before_bn2=nn.Dropout(0.5)), epochs=6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_buffers_of_an_early_epoch_are_no_initial_values(seed):
    """After 16 batches 0.9^16 = 19 % of the initial values remain at most, whatever fits better."""
    torch.manual_seed(seed)
    batches = data(seed)
    model = fit(Net(), batches, epochs=1, rate=0.01)
    early = {n: b.clone() for n, b in model.named_buffers()}
    fit(model, [(1.5 * x, y) for x, y in batches], epochs=6)
    model.load_state_dict(early, strict=False)
    assert int(model.bn1.num_batches_tracked) == 16
    result = audit(model, [(1.5 * x, y) for x, y in batches])
    assert codes(result) == ["stale"]
    assert result.findings[0].evidence["layers"] == ["bn1", "bn2", "bn3"]


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


@pytest.mark.parametrize("method", ["precise", "layerwise"])
def test_re_estimated_statistics_are_no_finding(shifted, method):
    """They fit eval mode; taking training's again would bring the shift back."""
    model, batches = shifted
    result = audit(recalibrate(model, batches, method, inplace=False), batches)
    assert result.findings == []
    assert {row["layer"]: row["role"] for row in result.layers}["bn2"] == "re-estimated"
    assert any("are those without noise" in note for note in result.notes)


def test_what_fix_gives_is_no_finding():
    model, batches = trained(0, Net(before_bn2=nn.Dropout(0.7)), epochs=2)
    before = audit(model, batches)
    assert [(f.code, f.severity) for f in before.findings] == [("variance_shift", "medium")]
    fixed = copy.deepcopy(model)
    fixed.load_state_dict(before.fixed_state(model))
    assert audit(fixed, batches).findings == []


def test_statistics_that_are_wrong_as_well_are_not_taken_for_re_estimated(shifted):
    model, batches = shifted
    wrong = recalibrate(model, batches, inplace=False)
    wrong.bn2.running_mean += 2 * wrong.bn2.running_var.sqrt()
    assert "stale" in codes(audit(wrong, batches))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_labels_the_same_is_found(seed):
    """Two repairs of the same layers: an output that moves back is no second gain."""
    model, batches = trained(seed, Net(before_bn2=nn.Dropout(0.5)), epochs=4)
    others = [(1.12 * x, y) for x, y in batches]  # a little off, as augmentation would be
    labelled = audit(model, others)
    assert codes(labelled) == ["variance_shift"]
    assert codes(audit(model, [x for x, _ in others])) == ["variance_shift"]


def test_roles_are_codes_of_findings_that_are_there():
    """Off by a little, without harm: no finding, and so no finding's code."""
    model, batches = trained(0)
    result = audit(model, [(1.25 * x, y) for x, y in batches])
    assert result.findings == []
    assert {row["role"] for row in result.layers} == {"off", "inherits"}


class Live(Net):
    def features(self, x):
        x = F.dropout(self.bn1(self.conv1(x)).relu(), 0.5)  # the line that is named
        return self.bn3(self.conv3(self.bn2(self.conv2(x)).relu())).relu()


def test_live_noise_is_named_by_its_line_and_hides_the_shift():
    result = audit(*trained(0, Live()))
    (finding,) = result.findings
    assert finding.code == "noise_live"
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "# the line that is named" in text)
    assert f"the model (dropout at test_causes.py:{line})" in finding.message
    assert finding.evidence["places"] == [f"test_causes.py:{line}"]
    assert "It reaches bn2 in both modes alike" in finding.message
    assert "audit again then" in finding.message


def test_live_noise_behind_the_last_batch_norm_hides_nothing():
    (finding,) = examine(FAULTS["noise_live"](0, True)).findings
    assert "audit again" not in finding.message


def test_a_training_loader_is_asked_for_only_where_there_is_none():
    patient = FAULTS["stale"](7, True)
    alone = examine(patient).findings[0].message
    given = audit(patient.model, patient.loader, train_loader=patient.loader).findings[0].message
    assert "A training loader would tell" in alone
    assert "raining loader would tell" not in given


def test_a_reference_is_asked_for_only_where_drift_explains_something():
    model, batches = trained(0)
    assert not any("--reference" in note for note in audit(model, batches).notes)
    model.bn1.requires_grad_(False)
    assert any("--reference" in note for note in audit(model, batches).notes)
    patient = FAULTS["stale"](7, True)
    assert any("--reference" in note for note in examine(patient).notes)


class TwoWays(Net):
    """Noise that widens what bn2 meets and narrows what bn3 meets."""

    def features(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(F.dropout(self.conv2(x), 0.5, self.training)).relu()
        x = self.conv3(x)
        return self.bn3(x * (0.5 + 0.1 * torch.rand_like(x)) if self.training else x).relu()


def test_layers_shifted_the_other_way_are_told_apart():
    (finding, *_) = audit(*trained(0, TwoWays())).findings
    assert finding.code == "variance_shift"
    assert "1 other layer is shifted the other way." in finding.message
    assert "likewise" not in finding.message


def test_one_layer_that_inherits_is_in_the_singular(shifted):
    (finding,) = audit(*shifted).findings
    assert "bn3 only inherits a shift." in finding.message


@pytest.mark.parametrize("make", [torch.zeros, torch.ones, torch.randn, torch.rand])
def test_three_dummy_forwards_are_counted(make):
    """Of a smaller batch, into statistics that lag a little behind the weights."""
    torch.manual_seed(2)
    batches = data(2, scale=2.0)
    model = fit(Net(), batches, epochs=8, rate=0.02)
    with torch.no_grad():
        for _ in range(3):
            model(make(4, 3, 8, 8))
    (finding,) = audit(model, batches, train_loader=batches).findings
    assert finding.code == "polluted"
    assert round(finding.evidence["forwards"]) == 3
    assert finding.evidence["inputs"].split()[0] == {
        "zeros": "zeros", "ones": "ones", "randn": "normal", "rand": "uniform"
    }[make.__name__]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("change", [lambda x: 1.2 * x, lambda x: x + 0.3, lambda x: x + 0.6])
def test_other_inputs_are_not_taken_for_dummies(seed, change):
    model, batches = trained(seed)
    assert "polluted" not in codes(audit(model, [(change(x), y) for x, y in batches]))
