"""State outside of parameters and buffers: it is restored, and what it does to scores is found."""

from __future__ import annotations

import random
import sys
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.broken_modes import Adapter
from examples.patients import Net, data, trained
from tests.auditing.conftest import codes
from vshift import audit


def deep_state(value: Any, seen: set[int] | None = None) -> Any:
    """Everything that a module holds, as comparable values; written without vshift's own code."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ("tensor", tuple(value.shape), str(value.dtype), value.requires_grad, content)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.tobytes())
    if isinstance(value, torch.Generator):
        return ("generator", value.get_state().numpy().tobytes())
    if isinstance(value, random.Random):
        return ("random", value.getstate())
    if id(value) in seen:
        return "again"
    if isinstance(value, dict):
        seen.add(id(value))
        return {str(key): deep_state(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        seen.add(id(value))
        return [type(value).__name__, *(deep_state(item, seen) for item in value)]
    if isinstance(value, nn.Module) or type(value).__module__.startswith("tests"):
        seen.add(id(value))
        return (type(value).__name__, deep_state(vars(value), seen))
    return value if isinstance(value, int | float | str | bool | None) else type(value).__name__


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


class Observer(nn.Module):
    """Buffers that take their shape from the first input, as in quantisation-aware training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.empty(0))
        self.register_buffer("high", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
        if not self.low.numel():
            self.low.resize_(low.shape).copy_(low)
            self.high = high
        self.low.copy_(torch.minimum(self.low, low))
        self.high = torch.maximum(self.high, high).double()
        return x


class Counter:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.calls = 0


class Stateful(nn.Module):
    """Keeps state in every way that people keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.counter = 0, Counter()
        self.recent: deque[float] = deque(maxlen=3)
        self.history: list[list[float]] = [[0.0]]
        self.cache: dict[str, Tensor] = {}
        self.mean = torch.zeros(8)
        self.array = np.zeros(2)
        self.generator = torch.Generator().manual_seed(1)
        self.random = random.Random(2)
        self.initialized = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.counter.calls += 1
        self.recent.append(float(x.mean()))
        self.history[0].append(float(x.mean()))
        self.cache["last"] = x.mean(0)
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        self.array += 1
        self.random.random()
        self.initialized = True
        self.extra = "new"
        return x + 0 * torch.randn(1, generator=self.generator)


class Uncopied(Stateful):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


def with_part(part: nn.Module) -> Net:
    torch.manual_seed(0)
    return Net(before_bn2=part)


STATEFUL = {
    "observer": Observer, "stateful": Stateful, "no copy": Uncopied, "adapter": nn.Identity,
}  # fmt: skip


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fails_at", [None, 3, 9])
def test_the_deep_state_is_as_before(name: str, mode: bool, fails_at: int | None) -> None:
    model = with_part(STATEFUL[name]())
    if name == "adapter":
        model.fc = Adapter(8 * 16, 4)
        nn.init.normal_(model.fc.up)
    model.train(mode)
    calls = []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyError("in the middle")

    model.bn3.register_forward_hook(count)
    before = deep_state(model)
    if fails_at is None:
        result = audit(model, data(0, 128))
        assert ("could not be copied" in " ".join(result.notes)) == (name == "no copy")
    else:
        with pytest.raises(KeyError, match="in the middle"):
            audit(model, data(0, 128))
    assert deep_state(model) == before


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
    assert "Ruled out: the running statistics of 3 batch norms, which fit" in finding.message


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
    assert "switched to training mode by the forward itself" in found[0].message
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
    assert "bn1 could not be restored: rebuild the model before using it" in notes
