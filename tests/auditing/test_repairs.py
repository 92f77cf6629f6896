"""Repairs change what they name, for one pass, and are taken back."""

from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.patients import Net, trained
from tests.auditing.conftest import everything
from vshift.auditing import repairs
from vshift.auditing.passes import AuditedModel
from vshift.auditing.repairs import Repair, try_repairs
from vshift.auditing.samples import collect
from vshift.shift.stats import Moments

WIDE = Moments(torch.zeros(8), torch.full((8,), 4.0))
NARROW = Moments(torch.zeros(8), torch.ones(8))


@pytest.fixture(scope="module")
def audited():
    model, batches = trained(0)
    return AuditedModel(model), collect(batches, torch.device("cpu"), 4)


@pytest.mark.parametrize(
    "repair",
    [
        Repair("statistics", statistics={"bn2": WIDE}),
        Repair("buffers", buffers={"bn2.running_var": WIDE.variance}),
        Repair("inputs", change_inputs=lambda x: 2 * x),
        Repair("mode", changes=[repairs.set_mode(["bn2"], training=True)]),
        Repair("eps", changes=[repairs.set_eps({"bn2": 10.0})]),
        Repair("by call", changes=[repairs.statistics_by_call("bn2", [WIDE])]),
        Repair("scale", changes=[repairs.scale_outputs({"bn3": 2.0})]),
    ],
    ids=lambda repair: repair.words,
)
def test_a_repair_changes_the_output_and_is_taken_back(audited, repair):
    model, samples = audited
    plain = try_repairs(model, samples, []).outputs
    model.saved.restore()
    before = everything(model.module)
    assert not torch.equal(try_repairs(model, samples, [repair]).outputs, plain)
    after = everything(model.module)
    randomness = {"torch", "python", "numpy"}  # restored by the whole audit
    assert {k: v for k, v in after.items() if k not in randomness} == {
        k: v for k, v in before.items() if k not in randomness
    }
    assert torch.equal(try_repairs(model, samples, []).outputs, plain)


def test_the_later_repair_of_a_layer_wins(audited):
    model, samples = audited
    wide, narrow = (Repair(w, statistics={"bn2": m}) for w, m in (("w", WIDE), ("n", NARROW)))
    both = try_repairs(model, samples, [wide, narrow])
    assert torch.equal(both.outputs, try_repairs(model, samples, [narrow]).outputs)


def test_each_call_of_a_layer_gets_its_own_statistics():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(8, eps=0)

        def forward(self, x):
            return torch.stack([self.bn(x), self.bn(x)])

    model = AuditedModel(Twice())
    with ExitStack() as stack:
        stack.enter_context(model.mode("eval"))
        repairs.statistics_by_call("bn", [WIDE, NARROW])(model, stack)
        first, second = model.module(torch.ones(3, 8))
    assert (first == 0.5).all()
    assert (second == 1).all()


def test_functional_noise_is_silenced_inside_only():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.5, training=True))

    model, x = AuditedModel(Noisy()), torch.randn(4, 3, 8, 8)
    with ExitStack() as stack, model.mode("eval"):
        assert not torch.equal(model.module(x), model.module(x))
        repairs.silence(model, stack)
        assert torch.equal(model.module(x), model.module(x))
