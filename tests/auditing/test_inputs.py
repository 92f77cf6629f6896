"""State dicts of all kinds, read without executing code and fitted to a model."""

import argparse

import pytest
import torch
from torch import nn

from vshift import audit
from vshift.auditing import AuditError
from vshift.auditing.inputs import fit_to_names, load_weights, read_state


def net(classes=3):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}},
    "the only tensors": lambda s: {"state_dict_ema": s, "epoch": 3},
    "DDP": lambda s: prefixed(s, "module."),
    "compiled DDP": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "net.") | {"criterion.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    },
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_what_is_wrapped_around_a_state_dict_is_taken_off(kind, tmp_path):
    torch.manual_seed(0)
    saved, model = net(), net()
    torch.save(WRAPPINGS[kind](saved.state_dict()), tmp_path / "w.pth")
    load_weights(model, read_state(tmp_path / "w.pth"), tmp_path / "w.pth")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (lambda: net(7).state_dict(), r"2.weight is \[7, 5\] in the file and \[3, 5\]"),
        (lambda: {"0.weight": torch.zeros(5, 4)}, "it lacks 0.bias and 4 more"),
        (lambda: net().state_dict() | {"extra": torch.ones(1)}, "it has an unknown extra"),
        (lambda: {"epoch": 3, "lr": 0.1}, "holds no state dict, but `epoch`, `lr`"),
        (lambda: [torch.ones(1)], "holds no state dict, but a list"),
        (lambda: {"state_dict": {}, "args": argparse.Namespace(a=1)}, "argparse.Namespace"),
        (net, "without executing code: it holds more than tensors"),
    ],
)
def test_what_does_not_fit_is_told(saved, says, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(saved(), path)
    with pytest.raises(AuditError, match=says):
        load_weights(net(), read_state(path), path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_refused_without_advice_to_load_them_unsafely(name, tmp_path):
    for content in (b"", b"hello", b"\x80\x02junk"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AuditError, match="cannot be read without executing code") as error:
            read_state(tmp_path / name)
        assert "weights_only" not in str(error.value)


def test_a_prefix_is_what_stands_before_the_models_own_names():
    state = {"a.b.fc.weight": 1, "a.b.fc.bias": 2, "other.weight": 3}
    assert fit_to_names(state, ["fc.weight", "fc.bias"]) == {"fc.weight": 1, "fc.bias": 2}
    assert fit_to_names({"fc.weight": 1, "x.fc.weight": 2}, ["fc.weight"]) == {
        "fc.weight": 1,
        "x.fc.weight": 2,
    }


def test_a_reference_with_a_prefix_is_compared_and_a_foreign_one_is_told():
    torch.manual_seed(0)
    model, batches = net(), [torch.randn(16, 4) for _ in range(6)]
    model[1].running_mean += 3
    old = {n: t.clone() for n, t in model.state_dict().items()}
    model[1].running_mean -= 3
    for state in (old, prefixed(old, "module.")):
        assert "drift" in {f.code for f in audit(model, batches, reference=state).findings}
    notes = audit(model, batches, reference={"conv.weight": torch.ones(1)}).notes
    assert any("none of this model's batch norms" in note for note in notes)
