"""State outside of parameters and buffers: it is restored, and what it does to scores is found."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.broken_models import FAULTS, examine
from examples.patients import Net, trained
from tests.auditing.conftest import codes
from vshift import audit


class LoRA(nn.Linear):
    """Merged in eval(), and taken apart again in train()."""

    merged = False

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.d = nn.Parameter(torch.randn(2, 8))

    def train(self, mode: bool = True) -> LoRA:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.d if mode else self.d
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.merged else super().forward(x) + x @ self.d.T


def test_a_healthy_adapter_given_in_either_mode_is_left_and_silent() -> None:
    torch.manual_seed(0)
    batches = [(x := torch.randn(32, 8), (x[:, 0] > 0).long()) for _ in range(6)]
    for mode in (True, False):
        model = nn.Sequential(LoRA()).train(mode)
        before = model(batches[0][0])
        assert codes(audit(model, batches)) == []
        assert torch.equal(model(batches[0][0]), before)


class OwnNorm(nn.Module):
    """Normalises by its own running statistics, which it keeps as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = torch.zeros(8, 1, 1), torch.ones(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3))[:, None, None], x.var((0, 2, 3))[:, None, None]
            self.mean = 0.9 * self.mean + 0.1 * mean.detach()
            self.var = 0.9 * self.var + 0.1 * var.detach()
        else:
            mean, var = self.mean, self.var
        return (x - mean) / (var + 1e-5).sqrt()


def test_lost_statistics_of_ones_own_norm_are_a_gap_at_that_module() -> None:
    torch.manual_seed(0)
    net = Net()
    net.conv2 = nn.Sequential(net.conv2, OwnNorm())
    model, batches = trained(0, net)
    assert codes(audit(model, batches)) == []
    net.conv2[1].mean, net.conv2[1].var = 5 + torch.zeros(8, 1, 1), 9 * torch.ones(8, 1, 1)
    (finding,) = audit(model, batches).findings
    assert (finding.code, finding.layer) == ("unexplained_gap", "conv2.1")
    assert finding.severity in ("medium", "high")
    assert (
        "Ruled out: running statistics (3 of 3 batch norms fit these inputs), noise"
        in finding.message
    )


def test_a_model_wrapped_after_eval_is_judged() -> None:
    """Nobody froze its layers: the wrapper alone is in training mode."""
    model, batches = trained(0)
    for layer in (model.bn1, model.bn2, model.bn3):
        layer.running_var *= 20
    wrapped = nn.Sequential(nn.Identity(), model.eval())
    assert wrapped.training
    found = audit(wrapped, batches)
    assert "stale" in codes(found)
    assert not any("not judged" in note for note in found.notes)


def test_layers_frozen_by_hand_are_still_left_out() -> None:
    model, batches = trained(0)
    model.train()
    model.bn2.eval()
    model.bn2.running_var *= 1.5
    rows = {row["layer"]: row["role"] for row in audit(model, batches).layers}
    assert rows["bn2"] == "frozen"


class SwitchesInForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.bn2.training = True
        return super().forward(x)


def test_a_mode_set_in_forward_is_named_with_a_repair_that_works() -> None:
    model, batches = trained(0, SwitchesInForward())
    found = [f for f in audit(model, batches).findings if f.code != "tiny_batches"]
    assert [(f.code, f.layer) for f in found] == [("bn_wrong_mode", "bn2")]
    assert "switched to training mode by forward() itself" in found[0].message
    assert found[0].gain is not None


def test_what_cannot_be_restored_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = trained(0)
    _conclude = sys.modules["vshift.auditing.audit"]._conclude

    def leaking(evidence: Any) -> Any:
        result = _conclude(evidence)
        model.bn1.register_buffer("leak", torch.ones(1))
        monkeypatch.setattr("vshift.auditing.guard.SavedState.restore", lambda self: None)
        return result

    monkeypatch.setattr(sys.modules["vshift.auditing.audit"], "_conclude", leaking)
    notes = audit(model, batches).notes
    assert '"bn1" could not be restored: rebuild the model before using it' in notes


def test_nan_in_buffers_is_no_change() -> None:
    model, batches = trained(0)
    model.bn3.running_mean[1] = float("nan")
    found = audit(model, batches)
    assert not any("restored" in note for note in found.notes)
    assert "as given" not in found.scores


@pytest.mark.parametrize("seed", [7, 402])
def test_a_cache_that_the_next_batch_fills_again_is_a_note(seed: int) -> None:
    """Another first batch changes the outputs as much as a call of train() and eval() does."""
    found = examine(FAULTS["mode_switch_changes_state"](seed, False))
    assert found.findings == []
    (note,) = [note for note in found.notes if "the next batch decides" in note]
    assert '"after_bn" computes: another first batch changes the output by' in note
