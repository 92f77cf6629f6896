"""Whatever a model holds is the same before and after an audit, also if its forward raises."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.auditing.conftest import deep_state
from tests.auditing.zoo import ZOO
from vshift import audit


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 60


def random_states() -> Any:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    return deep_state([*states, len(nn.modules.module._global_forward_hooks)])


def fail_in_the_middle(model: nn.Module) -> None:
    """Let the second forward raise when half of its layers have run, also in a copy."""
    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    calls = []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3 * len(leaves) // 2:
            raise KeyError("in the middle")

    for leaf in leaves:
        leaf.register_forward_hook(count)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_an_audit_leaves_everything_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model, loader = ZOO[name]()
    given_modes = "mode" in name or "eval" in name
    for training in (True, False):
        if not given_modes:
            model.train(training)
        before = deep_state(model), random_states()
        notes = audit(model, loader).notes
        assert (deep_state(model), random_states()) == before
        assert not any("could not be restored" in note for note in notes)
        if given_modes or name.startswith("timm"):
            break
    fail_in_the_middle(model)
    before = deep_state(model), random_states()
    with pytest.raises(KeyError, match="in the middle"):
        audit(model, loader)
    assert (deep_state(model), random_states()) == before
