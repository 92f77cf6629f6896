"""Forwards of two modes compared module by module."""

import pytest
import torch
from torch import nn

from examples.patients import Dense, fit, vectors
from tests.auditing.gaps import Branch, OwnNorm
from tests.auditing.kinds import LogOfDithered
from vshift.auditing.comparisons import first_departure
from vshift.auditing.passes import AuditedModel
from vshift.auditing.samples import collect

NORMS = ("bn1", "bn2", "bn3")


def departure(model, batches):
    samples = collect(batches, torch.device("cpu"), None)
    return first_departure(AuditedModel(model), samples, NORMS)


@pytest.fixture(scope="module")
def batches():
    return vectors(0, 256)


HEALTHY = {
    "nothing": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
    "noise that cannot be switched off": LogOfDithered,
    "a norm of one's own": lambda: OwnNorm(32),
}


@pytest.mark.parametrize("part", HEALTHY)
def test_batches_and_noise_alone_are_no_departure(batches, part):
    torch.manual_seed(0)
    model = fit(Dense(after_bn=HEALTHY[part]()), batches, epochs=8, rate=0.02)
    assert departure(model, batches) is None


def test_the_module_and_what_it_runs_in_one_mode_only_are_named(batches):
    torch.manual_seed(0)
    model = fit(Dense(after_bn=Branch(32)), batches, epochs=2, rate=0.05)
    found = departure(model, batches)
    assert found.layer == "after_bn"
    assert found.change > 0.5
    assert found.only_in_training == ["after_bn.one"]
    assert found.only_in_eval == ["after_bn.other"]


def test_a_branch_of_the_model_itself_is_the_models(batches):
    class Own(Dense):
        def head(self, x):
            return super().head(x) if self.training else super().head(2 * x)

    torch.manual_seed(0)
    found = departure(fit(Own(), batches, epochs=2, rate=0.05), batches)
    assert found.layer == ""
    assert found.only_in_training == found.only_in_eval == []
