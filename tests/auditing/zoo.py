"""Models of every kind that keeps state, small and untrained: an audit has to leave each as it was.

`ZOO` is name → a function that builds the model and a loader for it.
"""

from __future__ import annotations

import random
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.checkpoint import checkpoint
from torchvision import models

from examples.broken_modes import Adapter
from examples.patients import Net, data

Entry = tuple[nn.Module, Any]
ZOO: dict[str, Callable[[], Entry]] = {}


def entry(function: Callable[[], Entry]) -> Callable[[], Entry]:
    ZOO[function.__name__.replace("_", " ")] = function
    return function


def part(make: Callable[[], nn.Module]) -> Any:
    """Register a small network with a part of its own before its second batch norm."""

    def build() -> Entry:
        return Net(before_bn2=make()), data(0, 16, 4)

    ZOO[make.__name__] = build
    return make


# ---- libraries


def library(make: Callable[..., nn.Module], name: str, size: int, **options: Any) -> Entry:
    return make(name, **options), list(torch.randn(2, 2, 3, size, size))


for _name in ("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small"):
    ZOO[f"torchvision {_name}"] = partial(library, models.get_model, _name, 32, num_classes=4)
for _name in timm.list_models("test_*"):
    ZOO[f"timm {_name}"] = partial(library, timm.create_model, _name, 160)


# ---- plain attributes


class Counter:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.calls = 0


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


@dataclass
class Record:
    steps: int = 0
    seen: list[float] = field(default_factory=list)


@part
class Attributes(nn.Module):
    """Numbers, containers, tensors, arrays, objects."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.counter, self.record, self.slotted = 0, Counter(), Record(), Slotted()
        self.recent: deque[float] = deque(maxlen=3)
        self.history: list[list[float]] = [[0.0]]
        self.cache: dict[str, Tensor] = {}
        self.names: set[str] = set()
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.mean, self.array = torch.zeros(8), np.zeros(2)
        self.pair = ([0], {"a": 0})

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.counter.calls += 1
        self.record.steps += 1
        self.record.seen.append(float(x.mean()))
        self.slotted.calls += 1
        self.recent.append(float(x.mean()))
        self.history[0].append(float(x.mean()))
        self.cache["last"] = x.mean(0)
        self.names.add(str(self.calls))
        self.counts["calls"] += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        self.array += 1
        self.pair[0].append(1)
        self.pair[1]["a"] += 1
        self.extra = "new"
        return x


@part
class AttributesUncopied(Attributes):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


@part
class ClassAttributes(nn.Module):
    """Counts in the class, which no copy of the object protects."""

    calls = 0
    seen: list[int] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        self.seen.append(len(x))
        return x


@part
class Generators(nn.Module):
    """Random states of its own, of every library."""

    def __init__(self) -> None:
        super().__init__()
        self.torch = torch.Generator().manual_seed(1)
        self.random = random.Random(2)
        self.numpy, self.legacy = np.random.default_rng(3), np.random.RandomState(4)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.random.random() + self.numpy.random() + self.legacy.rand()
        return x + 0 * scale * torch.randn(1, generator=self.torch)


@part
class GeneratorsUncopied(Generators):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


@part
class Cache(nn.Module):
    """Emptied by train(), filled by the first forward in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = torch.ones(8, 1, 1)

    def train(self, mode: bool = True) -> Cache:
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None and not self.training:
            self.kept = x.mean((0, 2, 3))[:, None, None]
        return x if self.kept is None else x - self.kept


@part
class WeakReference(nn.Module):
    """A reference to another module that is no child."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(8)
        self.weak = weakref.ref(self.other)

    def forward(self, x: Tensor) -> Tensor:
        other = self.weak()
        return x if other is None else other(x)


# ---- parameters and buffers


@part
class Observer(nn.Module):
    """Buffers that take their shape and type from the inputs, as in quantisation-aware training."""

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


@part
class ObserverUncopied(Observer):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


@part
class Registrar(nn.Module):
    """Makes and drops buffers, parameters and modules in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("old", torch.zeros(8))
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if "old" in self._buffers:
            del self.old
        self.register_buffer("new", x.mean((0, 2, 3)))
        self.weight = nn.Parameter(self.weight.detach() + 1)
        self.made = nn.Dropout(0.1)
        return x


@part
class RegistrarUncopied(Registrar):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


@part
class ActNorm(nn.Module):
    """Parameters that the first batch initialises."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if not self.initialized:
            self.loc.data.copy_(-x.mean((0, 2, 3)))
            self.scale.data.copy_(1 / (x.std((0, 2, 3)) + 1e-6))
            self.initialized.fill_(1)
        return self.scale[:, None, None] * (x + self.loc[:, None, None])


@part
class Codebook(nn.Module):
    """Vectors that an exponential moving average of what falls to them updates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(4, 8))
        self.register_buffer("counts", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.movedim(1, -1).reshape(-1, 8)
        nearest = torch.cdist(flat, self.vectors).argmin(1)
        if self.training:
            hot = F.one_hot(nearest, 4).to(flat)
            self.counts.mul_(0.9).add_(0.1 * hot.sum(0))
            self.vectors.mul_(0.9).add_(0.1 * hot.T @ flat / hot.sum(0)[:, None].clamp(min=1))
        found = self.vectors[nearest].view(*x.movedim(1, -1).shape).movedim(-1, 1)
        return x + (found - x).detach()


@part
class Queue(nn.Module):
    """A buffer that every forward writes to in turn, as in momentum contrast."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(16, 8))
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        at = int(self.at)
        self.queue[at] = x.mean((0, 2, 3))
        self.at[0] = (at + 1) % 16
        self.unsaved += 1
        return x


@part
class RunningInputs(nn.Module):
    """Normalises by all that it has seen, with float64 sums, in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.total = 0, torch.zeros(8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        self.total += x.mean((2, 3)).sum(0).double()
        return x - (self.total / self.count).float()[:, None, None]


@part
class OddTensors(nn.Module):
    """Sparse, complex, half and boolean tensors, and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("low", torch.tensor([float("nan"), float("inf")]).half())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.base = torch.zeros(4)
        self.view = self.base[1:3]
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.phase += 1j
        self.flags.logical_not_()
        self.view += 1
        self.sparse = self.sparse * 2
        return x * self.weight


@part
class OddTensorsUncopied(OddTensors):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


@part
class Unfreezes(nn.Module):
    """Decides in its forward what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.scale.requires_grad_(not self.scale.weight.requires_grad)
        return self.scale(x)


# ---- modes and hooks


@part
class SwitchesMode(nn.Module):
    """A forward that sets modes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.training = True
        self.drop.train(not self.drop.training)
        return self.drop(self.norm(x))


@part
class EvalInTrain(nn.BatchNorm2d):
    """Frozen: train() leaves it in eval mode."""

    def __init__(self) -> None:
        super().__init__(8)

    def train(self, mode: bool = True) -> EvalInTrain:
        return super().train(False)


@part
class HooksInForward(nn.Module):
    """Registers hooks while it runs, and one that removes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = nn.Conv2d(8, 8, 1), 0
        self.once = self.inner.register_forward_pre_hook(self._once)

    def _once(self, module: nn.Module, inputs: Any) -> None:
        self.once.remove()

    def forward(self, x: Tensor) -> Tensor:
        self.inner.register_forward_hook(lambda *_: None)
        self.inner.register_full_backward_hook(lambda *_: None)
        return self.inner(x)


@entry
def hooks_that_count() -> Entry:
    model, calls = Net(), Counter()

    def count(*_: Any) -> None:
        calls.calls += 1

    model.bn1.register_forward_pre_hook(count)
    model.bn2.register_forward_hook(count, always_call=True)
    model.bn3.register_state_dict_post_hook(count)
    model.fc.register_load_state_dict_post_hook(count)
    model.calls = calls
    return model, data(0, 16, 4)


@part
class OutOfReach(nn.Module):
    """Modules in a list, a tuple and a dict, and made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [nn.BatchNorm2d(8), (nn.Dropout(0.2),)]
        self.by_name = {"a": [nn.BatchNorm2d(8)]}

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.kept[0], self.kept[1][0], self.by_name["a"][0], nn.BatchNorm2d(8)):
            x = module(x)
        return x


@part
class OutOfReachUncopied(OutOfReach):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


# ---- noise and norms


@part
class MonteCarlo(nn.Dropout):
    def __init__(self) -> None:
        super().__init__(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, True)


@part
class Instance(nn.InstanceNorm2d):
    def __init__(self) -> None:
        super().__init__(8, track_running_stats=True)


@part
class Simple(nn.BatchNorm2d):
    """A simple average, whose momentum is None."""

    def __init__(self) -> None:
        super().__init__(8, momentum=None)


@part
class WithoutStatistics(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(8, track_running_stats=False)


@part
class OwnBatchNorm(nn.Module):
    """Running statistics in attributes, updated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = {"mean": torch.zeros(8), "var": torch.ones(8)}

    def forward(self, x: Tensor) -> Tensor:
        s = self.statistics
        return F.batch_norm(x, s["mean"], s["var"], training=self.training)


# ---- wrappers


@entry
def compiled() -> Entry:
    return torch.compile(Net(), backend="eager"), data(0, 16, 4)


@entry
def compiled_part() -> Entry:
    model = Net()
    model.conv2.compile(backend="eager")
    model.conv3 = torch.compile(model.conv3, backend="eager")
    return model, data(0, 16, 4)


@entry
def data_parallel() -> Entry:
    return nn.DataParallel(Net()), data(0, 16, 4)


@entry
def averaged() -> Entry:
    mean = torch.optim.swa_utils.AveragedModel(Net(), use_buffers=True)
    mean.update_parameters(Net())
    return mean, data(0, 16, 4)


@entry
def wrapped_after_eval() -> Entry:
    return nn.Sequential(nn.Identity(), Net().eval()), data(0, 16, 4)


@entry
def one_part_in_training_mode() -> Entry:
    model = Net(after_bn=nn.Dropout(0.3)).eval()
    model.after_bn.train()
    return model, data(0, 16, 4)


@part
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@entry
def spectral_norm_by_hook() -> Entry:
    model = Net()
    model.conv2 = nn.utils.spectral_norm(model.conv2)
    model.train()(data(0, 4, 4)[0][0]).sum().backward()  # leaves a tensor that deepcopy refuses
    return model, data(0, 16, 4)


@entry
def spectral_norm_by_parametrization() -> Entry:
    model = Net()
    parametrizations.spectral_norm(model.conv2)
    return model, data(0, 16, 4)


@entry
def weight_norm_by_hook() -> Entry:
    model = Net()
    WeightNorm.apply(model.conv2, "weight", 0)
    return model, data(0, 16, 4)


@entry
def weight_norm_by_parametrization() -> Entry:
    model = Net()
    parametrizations.weight_norm(model.conv2)
    return model, data(0, 16, 4)


class Counting(nn.Module):
    """A parametrization that counts how often the weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.log: list[int] = []

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(1)
        return weight / weight.norm()


@entry
def parametrized() -> Entry:
    model = Net()
    parametrize.register_parametrization(model.conv2, "weight", Counting())
    parametrizations.orthogonal(model.fc)
    return model, data(0, 16, 4)


@entry
def pruned() -> Entry:
    model = Net()
    prune.l1_unstructured(model.conv2, "weight", amount=0.3)
    return model, data(0, 16, 4)


@entry
def prepared_for_quantization() -> Entry:
    model = Net()
    model.bn1 = nn.Sequential(model.bn1, quantization.FakeQuantize())
    model.conv2 = nn.Sequential(quantization.MovingAverageMinMaxObserver(), model.conv2)
    model.conv3 = nn.Sequential(quantization.PerChannelMinMaxObserver(ch_axis=1), model.conv3)
    return model, data(0, 16, 4)


@entry
def lora() -> Entry:
    model = Net()
    model.fc = Adapter(8 * 16, 4)
    nn.init.normal_(model.fc.up)
    return model, data(0, 16, 4)


@entry
def tied_weights() -> Entry:
    model = Net()
    model.conv3.weight, model.bn3 = model.conv2.weight, model.bn2
    return model, data(0, 16, 4)


@entry
def low_precision() -> Entry:
    return Net().bfloat16(), [(x.bfloat16(), y) for x, y in data(0, 16, 4)]


@entry
def double_precision() -> Entry:
    return Net().double(), [(x.double(), y) for x, y in data(0, 16, 4)]


# ---- sequences


class Recurrent(nn.Module):
    """A recurrent layer that may keep its hidden state from one call to the next."""

    def __init__(self, kind: type[nn.RNNBase], keeps_state: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer = kind(5, 8, **options)
        self.norm, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.keeps_state, self.state = keeps_state, None

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x, self.state)
        if self.keeps_state:
            self.state = state
        return self.fc(self.norm(out[:, -1]))


def sequences(steps: int = 6, rows: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(rows, steps, 5), torch.randint(3, (rows,))) for _ in range(4)]


@entry
def lstm() -> Entry:
    return Recurrent(nn.LSTM, batch_first=True, num_layers=2, dropout=0.2), sequences()


@entry
def gru_time_first() -> Entry:
    return Recurrent(nn.GRU), sequences()


@entry
def rnn_with_state() -> Entry:
    return Recurrent(nn.RNN, keeps_state=True, batch_first=True), sequences()


@entry
def lstm_with_state() -> Entry:
    return Recurrent(nn.LSTM, keeps_state=True, batch_first=True), sequences()


@entry
def transformer() -> Entry:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 8), body, nn.Flatten(), nn.Linear(48, 3)), sequences()


class Words(nn.Module):
    """Named arguments, and a table whose rows are renormalised in place when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8, max_norm=1.0)
        self.norm, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, words: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = (self.table(words) * mask[..., None]).sum(1)
        return {"logits": self.fc(self.norm(x))}


@entry
def named_arguments() -> Entry:
    batches = [
        {
            "words": torch.randint(10, (4, 6)),
            "mask": torch.ones(4, 6),
            "labels": torch.arange(4) % 3,
        }
        for _ in range(4)
    ]
    return Words(), batches


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.EmbeddingBag(10, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        return self.fc(self.table(words, offsets))


@entry
def offsets() -> Entry:
    return Bags(), [
        ((torch.randint(10, (9,)), torch.tensor([0, 4, 6])), torch.arange(3)) for _ in range(4)
    ]


class Graph(nn.Module):
    """Nodes and an adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        return self.fc(adjacency @ self.norm(nodes))


@entry
def graph() -> Entry:
    batches = [((torch.randn(n, 5), torch.eye(n)), torch.arange(n) % 3) for n in (5, 7, 6)]
    return Graph(), batches
