"""The three passes: their statistics, their number, and models that train() breaks."""

import pytest
import torch

from examples.patients import Net, data, trained
from vshift import audit


def test_statistics_of_the_probes_are_those_computed_by_hand(shifted):
    model, batches = shifted
    row = audit(model, batches).layers[0]  # no noise before the first BN: the same in any mode
    x = [model.conv1(images).detach() for images, _ in batches]
    by_hand = torch.stack([t.transpose(0, 1).flatten(1).var(1) for t in x]).mean()
    for key in ("train_variance", "noise_off_variance", "eval_variance"):
        assert row[key] == pytest.approx(float(by_hand), rel=0.02)
    assert row["running_variance"] == pytest.approx(float(model.bn1.running_var.mean().detach()))


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_other_precisions(precision):
    model, batches = trained(0)
    model.to(precision)
    model.bn2.running_mean += 2 * model.bn2.running_var.sqrt()
    found = audit(model, [(x.to(precision), y) for x, y in batches]).findings
    assert [(f.code, f.layer) for f in found] == [("stale", "bn2")]


def test_the_passes_are_the_three_probes_and_little_more():
    """Forwards without findings: 3 over all batches, 12 of single batches, 4 of single samples."""
    model, batches = trained(0)
    calls = []
    handle = model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    assert audit(model, batches).findings == []
    handle.remove()
    assert len(calls) <= 3 * len(batches) + 16


def test_a_model_that_wants_targets_in_training_is_switched_leaf_by_leaf():
    class WithLoss(Net):
        def forward(self, x):
            return {"loss": super().forward(x).mean()} if self.training else super().forward(x)

    torch.manual_seed(0)
    found = audit(WithLoss(), data(0, 64))
    assert any("one by one" in note for note in found.notes)
    assert [row["layer"] for row in found.layers] == ["bn1", "bn2", "bn3"]
