"""Audit a LightningModule-like class: pass the module and the loader unchanged.

    python -m examples.lightning_style

A short training loop stands in for the library's trainer. The fault is the most common one:
averaged weights replace the weights, without their buffers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.patients import Batches, Net, data
from vshift import audit, recalibrate
from vshift.auditing import Audit


class Classifier(nn.Module):
    """The network, its loss and its optimizer, as in a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def train(system: Classifier, batches: Batches, epochs: int) -> None:
    optimizer = system.configure_optimizers()
    for _ in range(epochs):
        for index, batch in enumerate(batches):
            optimizer.zero_grad()
            system.training_step(batch, index).backward()
            optimizer.step()


def main() -> tuple[Audit, Audit]:
    torch.manual_seed(0)
    batches = data(0)
    system, averaged = Classifier(), Classifier()
    train(system, batches, 3)
    averaged.load_state_dict(dict(system.named_parameters()), strict=False)  # no buffers
    before = audit(averaged, batches)
    recalibrate(averaged, batches)
    return before, audit(averaged, batches)


if __name__ == "__main__":
    broken, repaired = main()
    print(broken, "\n\nAfter vshift.recalibrate:\n", repaired, sep="\n")
