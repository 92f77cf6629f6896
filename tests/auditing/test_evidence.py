"""What layers are judged to be: shifted, inheriting, re-estimated, wrong."""

import pytest

from tests.auditing.conftest import codes
from vshift import audit, recalibrate
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
    assert finding.evidence["noise"] == ["before_bn2 (Dropout)"]
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
