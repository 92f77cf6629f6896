"""What is measured before anything is concluded: scores of every mode on the same samples."""

import pytest
import torch
from torch import nn

from examples.patients import Net, data, fit, trained
from tests.auditing.conftest import codes
from vshift import audit, recalibrate
from vshift.auditing.evidence import fit_to_names
from vshift.shift.decompose import decompose


def test_the_local_ratio_is_that_of_the_exact_split(shifted):
    """Against `explain`, which takes the noise out of each activation by the traced graph."""
    model, batches = shifted
    found = audit(model, batches).layers[1]
    exact = decompose(model, lambda: (x for x, _ in batches))["bn2"]
    assert found["local_ratio"] == pytest.approx(exact.local.value, rel=0.03)
    assert found["local_ratio"] * found["inherited_ratio"] == pytest.approx(
        exact.total.value, rel=0.03
    )


def test_layers_that_inherit_are_said_to(shifted):
    result = audit(*shifted)
    (finding,) = result.findings
    assert finding.layer == "bn2"
    assert finding.evidence["noise"] == ["before_bn2 (dropout)"]
    roles = {row["layer"]: row["role"] for row in result.layers}
    assert roles["bn1"] == "ok"
    assert roles["bn2"] == "variance_shift"
    assert roles["bn3"] == "inherits"
    assert finding.evidence["inherits"] == ["bn3"]


@pytest.mark.parametrize("method", ["precise", "layerwise"])
def test_re_estimated_statistics_are_no_finding(shifted, method):
    """They fit eval mode; taking training's again would bring the shift back."""
    model, batches = shifted
    result = audit(recalibrate(model, batches, method, inplace=False), batches)
    assert result.findings == []
    assert {row["layer"]: row["role"] for row in result.layers}["bn2"] == "re-estimated"
    assert any("are those without noise" in note for note in result.notes)


def test_statistics_that_are_wrong_as_well_are_not_taken_for_re_estimated(shifted):
    model, batches = shifted
    wrong = recalibrate(model, batches, inplace=False)
    wrong.bn2.running_mean += 2 * wrong.bn2.running_var.sqrt()
    assert "stale" in codes(audit(wrong, batches))


BOTH = ["train mode", "batch statistics, noise off", "eval mode"]  # nothing is repaired here


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


def test_a_prefix_is_what_stands_before_the_models_own_names():
    state = {"a.b.fc.weight": 1, "a.b.fc.bias": 2, "other.weight": 3}
    assert fit_to_names(state, ["fc.weight", "fc.bias"]) == {"fc.weight": 1, "fc.bias": 2}
    assert fit_to_names({"fc.weight": 1, "x.fc.weight": 2}, ["fc.weight"]) == {
        "fc.weight": 1,
        "x.fc.weight": 2,
    }
