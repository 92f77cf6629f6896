"""Initial values and dummy inputs are told from old statistics and other inputs."""

import pytest
import torch

from examples.patients import Dense, Net, data, fit, trained, vectors
from tests.auditing.conftest import codes
from vshift import audit


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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("change", [lambda x: 1.3 * x, lambda x: x + 0.5])
def test_other_inputs_of_an_mlp_are_not_taken_for_dummies(seed, change):
    """Scaled inputs move the first layer as small batches of normal numbers do, but no other."""
    torch.manual_seed(seed)
    batches = vectors(seed)
    model = fit(Dense(), batches, epochs=4, rate=0.05)
    assert "polluted" not in codes(audit(model, [(change(x), y) for x, y in batches]))
