"""The paper's measurement in plain PyTorch, to copy from: one file, nothing of vshift.

    python examples/minimal.py                  # drawn images, half a minute on one CPU core
    python examples/minimal.py CIFAR10_FOLDER   # where torchvision has, or puts, CIFAR-10

Trains a small PreResNet with dropout right before each block's last BN (Dropout-(a) of Li et al.
2019) and shows, for every BN layer, the variance of its input in training, the one that it
remembers, and the one that it meets in eval mode. Then it re-estimates BN's statistics.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batches = Iterable[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """BN, ReLU and convolution, twice; the dropout sits right before the last BN."""

    def __init__(self, inputs: int, outputs: int, stride: int, rate: float) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout, same = nn.Dropout(rate), inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.relu(self.bn1(x)))
        return self.skip(x) + self.conv2(F.relu(self.bn2(self.dropout(branch))))


class PreResNet8(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks = [Block(16, 16, 1, rate), Block(16, 32, 2, rate), Block(32, 64, 2, rate)]
        self.blocks, self.bn, self.fc = (
            nn.Sequential(*blocks),
            nn.BatchNorm2d(64),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.blocks(self.conv(x)))).mean((2, 3)))


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


class InputMoments:
    """Moments of the inputs of all BN layers, of the batches inside its `with`."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = norms(model)
        self.batches: dict[str, list[Tensor]] = {name: [] for name in self.layers}

    def __enter__(self) -> InputMoments:
        self.hooks = [
            layer.register_forward_pre_hook(lambda _, inputs, name=name: self._add(name, inputs[0]))
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _add(self, name: str, x: Tensor) -> None:
        values = x.detach().transpose(0, 1).flatten(1).double()  # [C, N·H·W]
        count = torch.full_like(values[:, 0], values.shape[1])
        self.batches[name].append(torch.stack([count, values.mean(1), values.var(1)]))

    def variance(self, name: str) -> Tensor:
        """[C]: the unbiased variance of a batch, averaged over batches, as BN averages it."""
        return torch.stack(self.batches[name])[:, 2].mean(0)

    def pooled(self, name: str) -> tuple[Tensor, Tensor]:
        """[C], [C]: mean and unbiased variance of all values of all batches together."""
        n, means, variances = torch.stack(self.batches[name]).unbind(1)
        mean = (n * means).sum(0) / n.sum(0)
        squares = (n - 1) * variances + n * (means - mean).square()
        return mean, squares.sum(0) / (n.sum(0) - 1)


def train_epoch(
    model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer
) -> InputMoments:
    model.train()
    with InputMoments(model) as moments:
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return moments


@torch.no_grad()
def eval_moments(model: nn.Module, batches: Batches) -> InputMoments:
    """The whole network in eval mode: dropout off, and every BN on its running statistics."""
    model.eval()
    with InputMoments(model) as moments:
        for images, _ in batches:
            model(images)
    return moments


@torch.no_grad()
def precise(model: nn.Module, batches: Batches) -> None:
    """Re-estimate BN's statistics: dropout off, every BN on each batch's own statistics."""
    model.eval()
    for layer in norms(model).values():
        layer.train()  # its running statistics move, too, until they are replaced below
    with InputMoments(model) as moments:
        for images, _ in batches:
            model(images)
    for name, layer in norms(model).items():
        mean, variance = moments.pooled(name)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    model.eval()


def shift_ratio(running: Tensor, evaluated: Tensor) -> float:
    """max(eval/running, running/eval) of the channel means; 1 is no shift (section 4)."""
    ratio = float(evaluated.mean() / running.mean())
    return max(ratio, 1 / ratio)


@torch.no_grad()
def error(model: nn.Module, batches: Batches) -> float:
    """Error in eval mode, in percent."""
    model.eval()
    wrong = torch.cat([model(images).argmax(1) != labels for images, labels in batches])
    return 100 * float(wrong.double().mean())


def drawn(count: int, seed: int) -> TensorDataset:
    """Images [N, 3, 16, 16] of ten patterns, each at a random place and with noise."""
    patterns = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    rows, columns = torch.randint(4, (2, count), generator=generator).tolist()
    images = [
        patterns[y].roll((i, j), (1, 2)) for y, i, j in zip(labels, rows, columns, strict=True)
    ]
    return TensorDataset(
        torch.stack(images) + torch.randn(count, 3, 16, 16, generator=generator), labels
    )


def cifar10(folder: str, train: bool) -> torch.utils.data.Dataset:
    from torchvision import datasets
    from torchvision import transforms as t

    moved = [t.RandomCrop(32, 4), t.RandomHorizontalFlip()] if train else []
    plain = [t.ToTensor(), t.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
    return datasets.CIFAR10(folder, train, t.Compose([*moved, *plain]), download=True)


def main(folder: str | None = None, rate: float = 0.5, epochs: int = 8) -> nn.Module:
    torch.manual_seed(0)
    train, test = (
        (cifar10(folder, True), cifar10(folder, False))
        if folder
        else (drawn(2000, 1), drawn(1000, 2))
    )
    train, test = DataLoader(train, 64, shuffle=True, drop_last=True), DataLoader(test, 250)
    model = PreResNet8(rate)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, epochs * 3 // 4])
    for epoch in range(epochs):
        training = train_epoch(model, train, optimizer)
        schedule.step()
        print(f"epoch {epoch + 1}: test error {error(model, test):.1f} %")
    batches = list(islice(train, 30))  # training images, augmented
    evaluated = eval_moments(model, batches)
    print(f"\n{'layer':14} train  running  eval  ratio   of the variance of its input")
    for name, layer in norms(model).items():
        three = training.variance(name), layer.running_var, evaluated.variance(name)
        means = "  ".join(f"{float(variance.mean()):.3f}" for variance in three)
        print(f"{name:14} {means}  {shift_ratio(*three[1:]):.3f}")
    before = error(model, test)
    precise(model, batches)
    print(f"\ntest error {before:.1f} %, {error(model, test):.1f} % with re-estimated statistics")
    return model


if __name__ == "__main__":
    main(*sys.argv[1:2])
