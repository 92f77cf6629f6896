"""The optimizer against PyTorch's, and what weight decay reaches."""

import copy

import pytest
import torch

from tests.configs import make_config
from tests.train.test_fast_steps import context_of, equal
from vshift.networks.build import build
from vshift.train.objective import classification
from vshift.train.optimizer import SGD, make_optimizer


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_bit_for_bit(momentum, nesterov):
    context = context_of()
    options = {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    ours, theirs = context.model, copy.deepcopy(context.model)
    own = SGD([{"params": list(ours.parameters())}], lr=0.1, weight_decay=1e-4, **options)
    other = torch.optim.SGD(theirs.parameters(), 0.1, weight_decay=1e-4, **options)
    for images, labels in context.stream.epoch(0):
        for model, optimizer in ((ours, own), (theirs, other)):
            optimizer.zero_grad()
            classification(model(images), images, labels)[0].backward()
            optimizer.step()
    equal(theirs.state_dict(), ours.state_dict())


def test_weight_decay_can_leave_norms_and_biases_out():
    config = make_config(optimizer={"name": "sgd", "decay_norm_and_bias": False})
    model = build(config, classes=10, channels=3, size=32, seed=0)
    groups = make_optimizer(model, config.optimizer).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
