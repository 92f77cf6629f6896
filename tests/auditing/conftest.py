"""Small trained models, and what must be the same before and after an audit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from examples.patients import Net, trained
from tests.auditing.own_file import FILE


def everything(model: nn.Module) -> dict[str, object]:
    """All of a model and of the random states that an audit must leave, as comparable values."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    found: dict[str, object] = {
        f"{name}.{key}": bytes(t.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, module in model.named_modules()
        for key, t in [*module._parameters.items(), *module._buffers.items()]
        if t is not None
    }
    for name, module in model.named_modules():
        found[f"{name} mode"] = module.training
        found[f"{name} hooks"] = [len(getattr(module, hook)) for hook in hooks]
        found[f"{name} switches"] = [getattr(module, k, None) for k in ("momentum", "eps")]
        found[f"{name} objects"] = [id(t) for t in [*module._buffers.values()]]
    found["torch"] = torch.get_rng_state().numpy().tobytes()
    found["python"] = random.getstate()
    found["numpy"] = np.random.get_state()[1].tobytes()
    found["global hooks"] = len(nn.modules.module._global_forward_hooks)
    return found


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def codes(audit) -> list[str]:
    """Of the findings, the most harmful first."""
    return [finding.code for finding in audit.findings]


@pytest.fixture(scope="module")
def shifted():
    """Dropout before the second of three BN."""
    return trained(0, Net(before_bn2=nn.Dropout(0.5)), epochs=6)


@pytest.fixture
def vshift(vshift, tmp_path):
    """The command line in a folder with a file of models and loaders."""
    (tmp_path / "mine.py").write_text(FILE)
    return vshift
