"""Batches are cut and mixed only where their rows are samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.patients import Net, data, trained
from tests.auditing.conftest import codes
from vshift import audit
from vshift.auditing import AuditError
from vshift.auditing.samples import Samples, collect

CPU = torch.device("cpu")


class Graph:
    """What a graph library's loader gives: an object with `to`, and no tensor to see."""

    def __init__(self, nodes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(nodes, 6, generator=generator)
        self.edges = torch.randint(nodes, (2, 3 * nodes), generator=generator)

    def to(self, device: torch.device) -> Graph:
        return self


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, graph: Graph) -> Tensor:
        source, target = graph.edges
        sums = torch.zeros_like(graph.x).index_add(0, target, graph.x[source])
        return self.fc(self.bn(graph.x + sums))


class Adjacent(nn.Module):
    """[N, F] features and an [N, N] matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.fc(self.bn(adjacency @ x))


class TimeFirst(nn.Module):
    """[T, N, F] without labels: T is the length of the first dimension."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.bn = part, nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        found = self.part(x)
        found = found[0] if isinstance(found, tuple) else found
        return self.bn(found.flatten(0, 1)).view(found.shape)


class Blocks(nn.Module):
    """[T·N, F]: each T rows are one sample, and share their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.view(-1, 4, 8)
        return self.fc(self.bn((blocks - blocks.mean(1, keepdim=True)).flatten(0, 1)))


class Pairs(nn.Module):
    """[2N, F] in, [N, 1] out: a siamese network."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.fc(self.bn(x)).chunk(2)
        return (one - other).square().sum(1, keepdim=True)


class Masked(nn.Module):
    """Batch-first attention, a [T, T] mask and a 0-d temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, mask: Tensor, temperature: Tensor) -> Tensor:
        found, _ = self.attention(x * temperature, x, x, attn_mask=mask)
        return self.bn(found.transpose(1, 2)).mean(2)


def rows(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


MASK = torch.full((8, 8), -torch.inf).triu(1)
TRANSFORMER = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
CASES: dict[str, tuple[nn.Module, list[Any]]] = {
    "graph": (GraphNet(), [Graph(20 + i, i) for i in range(8)]),
    "adjacency": (
        Adjacent(),
        [((torch.randn(n, 6), torch.eye(n).roll(1, 0)), None) for n in (16, 20, 24, 16)],
    ),
    "time-first LSTM": (TimeFirst(nn.LSTM(5, 8)), rows(8, 12, 16, 5)),
    "time-first transformer": (TimeFirst(TRANSFORMER), rows(8, 12, 16, 8)),
    "blocks": (Blocks(), rows(8, 32, 8)),
    "siamese": (Pairs(), rows(8, 32, 8)),
    "mask": (Masked(), [((x, MASK, torch.tensor(0.5)), None) for x in rows(8, 16, 8, 8)]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:Support for mismatched")
def test_healthy_models_whose_rows_are_no_samples_are_silent(name: str) -> None:
    model, loader = CASES[name]
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():  # running statistics that fit
        for _ in range(30):
            for batch in loader:
                inputs = batch[0] if isinstance(batch, tuple) else batch
                model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    found = audit(model, loader)
    assert codes(found) == []
    assert any("not known to be independent samples" in note for note in found.notes)


def test_rows_are_mixed_where_they_are_samples() -> None:
    model, batches = trained(0)
    samples = collect(batches, CPU, 4)
    assert isinstance(samples, Samples)
    assert samples.rows_are_samples
    assert not any("not known to be" in note for note in audit(model, batches).notes)


def test_a_detection_loader_needs_unpack() -> None:
    loader = [([torch.rand(3, 8, 8)] * 4, [{"boxes": torch.rand(1, 4)}] * 4)] * 3
    with pytest.raises(AuditError, match="`unpack=lambda batch"):
        audit(Net(), loader)

    class Detector(Net):
        def forward(self, images: list[Tensor]) -> Tensor:
            return super().forward(torch.stack(images))

    found = audit(Detector(), loader, unpack=lambda batch: ((list(batch[0]),), None))
    assert any("not known to be independent samples" in note for note in found.notes)


class SkipsForOne(Net):
    """The batch norm is left out for a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        self.bn1.skip = len(x) == 1
        return super().forward(x)


class Skipping(nn.BatchNorm2d):
    skip = False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.skip else super().forward(x)


def test_a_sample_alone_that_gets_another_output_is_found() -> None:
    net = SkipsForOne()
    net.bn1 = Skipping(8)
    model, batches = trained(0, net)
    with torch.no_grad():
        net.conv1.bias += 3
        net.bn1.running_mean += 3
    found = {f.code: f for f in audit(model, batches).findings}
    assert found["batch_dependent"].severity in ("medium", "high")
    assert "A sample alone gives another output than in a batch" in found["batch_dependent"].message


@pytest.mark.parametrize(
    ("loader", "options", "says"),
    [
        (data(0), {"batches": -1}, "batches is -1; an audit compares batches"),
        (data(0), {"samples": -1}, "samples is -1; an audit needs at least 4"),
        (
            torch.utils.data.TensorDataset(torch.rand(64, 3, 8, 8)),
            {},
            "is a data set, which gives single samples; wrap it",
        ),
        (
            [(x.double(), y) for x, y in data(0)],
            {},
            r"the inputs are torch.float64 and the parameters torch.float32: convert",
        ),
        (
            [(x, torch.full((len(x), 1), torch.nan)) for x, _ in data(0)],
            {"loss": lambda output, y: (output[:, :1] - y).square().mean()},
            "the labels hold NaN or inf",
        ),
    ],
)
def test_what_cannot_be_audited_is_said_in_a_sentence(
    loader: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(AuditError, match=says):
        audit(Net(), loader, **options)


def test_one_iterator_as_both_loaders_is_refused() -> None:
    batches = iter(data(0))
    with pytest.raises(AuditError, match="are one iterator"):
        audit(Net(), batches, train_loader=batches)


def test_a_loss_may_return_a_number() -> None:
    model, batches = trained(0)
    found = audit(model, batches, loss=lambda output, y: float(output.square().mean()))
    assert found.scores["eval mode"]["loss"] > 0


def test_small_batches_in_testing_are_no_small_batches_in_training() -> None:
    model, batches = trained(0)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    small = list(zip(images.split(2), labels.split(2), strict=True))
    assert "tiny_batches" not in codes(audit(model, small, batches=64))


@pytest.mark.parametrize(
    ("size", "options", "used"),
    [
        (8, {"samples": 64}, 8),
        (8, {"samples": 100}, 13),
        (32, {"samples": 64}, 8),
        (32, {"samples": 64, "batches": 3}, 3),
        (32, {"samples": None}, 16),
    ],
)
def test_samples_decide_how_many_batches_are_used(
    size: int, options: dict[str, Any], used: int
) -> None:
    model, given = Net(), []

    def loader() -> Iterator[Any]:
        for batch in data(0, 512, size):
            given.append(batch)
            yield batch

    audit(model, loader(), **options)
    assert len(given) == used
