"""The layer with the wrong eps is named, not the one after it, whose statistics are right."""

import pytest
import torch
from torch import nn

from examples.patients import Dense, Net, data, fit, trained, vectors
from tests.auditing.conftest import codes
from vshift import audit


@pytest.fixture(scope="module", params=["MLP", "convolutional"])
def healthy(request):
    torch.manual_seed(0)
    model, batches = (Dense(), vectors(0)) if request.param == "MLP" else (Net(), data(0))
    return fit(model, batches, epochs=4, rate=0.05).state_dict(), type(model), batches


def scaled(healthy, scales, eps):
    """The trained model with the inputs of batch norms scaled, exactly compensated but for eps."""
    state, make, batches = healthy
    model = make()
    model.load_state_dict(state)
    with torch.no_grad():
        for number, scale in scales.items():
            layer = model.get_submodule(f"bn{number}")
            for parameter in model.get_submodule(f"conv{number}").parameters():
                parameter *= scale
            layer.running_mean *= scale
            layer.running_var *= scale**2
            layer.eps = scale**2 * layer.eps if eps is None else eps
    return model, batches


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("scale", "eps"), [(0.01, 1e-3), (0.003, 1e-3), (0.1, 1e-1)])
def test_the_layer_with_the_wrong_eps_is_the_only_one_named(healthy, number, scale, eps):
    (finding,) = audit(*scaled(healthy, {number: scale}, eps)).findings
    assert (finding.code, finding.layer) == ("variance_below_eps", f"bn{number}")
    assert finding.severity in ("medium", "high")
    assert finding.evidence["layers"] == [f"bn{number}"]


def test_several_layers_with_the_wrong_eps(healthy):
    (finding,) = audit(*scaled(healthy, {1: 0.01, 2: 0.003}, 1e-3)).findings
    assert finding.code == "variance_below_eps"
    assert sorted(finding.evidence["layers"]) == ["bn1", "bn2"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_small_activations_with_their_own_eps_are_silent(healthy, number):
    assert codes(audit(*scaled(healthy, {number: 0.01}, None))) == []


def test_an_eps_that_outweighs_the_variance_in_training_too_is_silent():
    """The layers after it fit with it."""
    model = Net()
    model.conv2.weight.requires_grad_(False).mul_(3e-4)
    model.conv2.bias.requires_grad_(False).mul_(3e-4)
    model.bn2.eps = 1e-3
    assert codes(audit(*trained(0, model, epochs=6, rate=0.05))) == []


def test_statistics_that_are_wrong_themselves_are_not_blamed_on_eps(healthy):
    model, batches = scaled(healthy, {1: 0.01}, None)
    model.bn2.running_var *= 9
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer) == ("stale", "bn2")


def test_without_labels_and_layers_after_it_an_eps_is_a_note(healthy):
    model, batches = scaled(healthy, {3: 0.01}, 1e-3)
    result = audit(nn.Sequential(model), [x for x, _ in batches])
    assert codes(result) == []
    assert any('0.001 outweighs the running variance of "0.bn3"' in note for note in result.notes)
