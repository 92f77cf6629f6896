"""Spectral norm in both of PyTorch's styles."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.broken_models import FAULTS, examine
from tests.auditing.conftest import codes
from vshift import audit


@pytest.mark.parametrize("style", ["hook", "parametrization"])
@pytest.mark.parametrize("owner", ["fc", ""])
def test_both_kinds_of_spectral_norm(style, owner):
    torch.manual_seed(0)
    wrap = {
        "hook": nn.utils.spectral_norm,
        "parametrization": nn.utils.parametrizations.spectral_norm,
    }[style]
    layer = wrap(nn.Linear(12, 6))
    layer.train()
    for _ in range(30):
        layer(torch.randn(4, 12))
    model = layer if not owner else nn.Sequential()
    if owner:
        model.add_module(owner, layer)
    batches = [torch.randn(16, 12) for _ in range(4)]
    assert codes(audit(model, batches)) == []
    with torch.no_grad():  # a buffer u that is orthogonal to the right one
        buffers = dict(model.named_buffers())
        (u,) = (t for n, t in buffers.items() if n.endswith("_u"))
        u.copy_(F.normalize(torch.randn(6) - 0.9 * u, dim=0))
    matrix = (layer.weight_orig if style == "hook" else layer.parametrizations.weight.original).data
    (v,) = (t for n, t in buffers.items() if n.endswith("_v"))
    expected = float(torch.linalg.svdvals(matrix)[0] / (u @ matrix @ v))
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer) == ("spectral_norm", owner)
    assert finding.evidence["true_over_used"][owner] == pytest.approx(expected, rel=0.01)


def test_the_fixed_state_has_right_spectral_vectors():
    patient = FAULTS["spectral_norm"](0, True)
    found = examine(patient)
    patient.model.load_state_dict(found.fixed_state(patient.model))
    assert examine(patient).findings == []
