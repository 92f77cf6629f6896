"""Further kinds of fault are named in an MLP and in a convolutional network, their twins silent.

Five seeds of each are in docs/audit.md; eps has tests of its own in findings/test_eps.py.
"""

import pytest

from examples.broken_models import examine
from tests.auditing.conftest import codes
from tests.auditing.kinds import KINDS
from tests.auditing.nets import NETS

NAMES = [name for name in KINDS if not name.startswith("eps")]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_kind_is_named_and_its_healthy_twin_is_not(name, net):
    kind = KINDS[name]
    assert codes(examine(kind.plant(net, 7, False))) == []
    if kind.codes:
        patient = kind.plant(net, 7, True)
        (finding,) = examine(patient).findings
        assert finding.code in kind.codes
        assert not patient.layers or finding.layer in patient.layers


@pytest.mark.parametrize("name", ["attention dropout in eval mode", "mode set in forward"])
@pytest.mark.parametrize("net", NETS)
def test_answers_that_are_random_or_depend_on_others_are_never_nothing(name, net):
    """Whatever they cost on average."""
    assert examine(KINDS[name].plant(net, 0, True)).fails("low")


def test_what_helps_one_domain_is_not_written_into_the_fixed_weights():
    """It would break the others, which the advice says."""
    patient = KINDS["domains in turn"].plant("MLP", 0, True)
    found = examine(patient)
    assert found.fixed == {}
    assert found.findings[0].gain.accuracy_after > found.findings[0].gain.accuracy_before + 10
    assert "re-estimated on one domain break the others" in found.findings[0].advice
    assert "share a batch norm" in found.findings[0].causes
