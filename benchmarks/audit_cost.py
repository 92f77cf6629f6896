"""What an audit costs over the forward passes it needs.

    python -m benchmarks.audit_cost [--model resnet50 | mlp] [--images 512] [--size 64] [--pairs 3]

Needed are the three passes (batch statistics with noise on, with noise off, plain eval) and one
for each repair that was tried, over all images in the audit's batches; they are timed as bare
forwards without gradients, in the same modes. Pairs of (audit, bare passes) alternate; the ratio of
each pair is printed, then their median and range. Times are the process's CPU time, which other
programs on the machine disturb little. `--model mlp` is a small network, whose audit costs more of
its own: three times linear, batch norm, ReLU, 256 wide.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torchvision import models

from vshift import audit
from vshift.shift.modes import modes, restoring_state


@torch.no_grad()
def bare(model: nn.Module, batches: list[Tensor], repairs: int) -> float:
    """CPU seconds of the passes an audit cannot do without."""
    began = time.process_time()
    with restoring_state(model):
        model.train()
        for images in batches:
            model(images)
        with modes(model, noise=False, norm="batch"):
            for images in batches:
                model(images)
        model.eval()
        for _ in range(1 + repairs):
            for images in batches:
                model(images)
    return time.process_time() - began


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for width in (32, 256, 256):
        layers += [nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(256, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    torch.manual_seed(0)
    if asked.model == "mlp":
        model, shape = mlp(), [asked.images, 32]
    else:
        model = models.get_model(asked.model, weights=None)
        shape = [asked.images, 3, asked.size, asked.size]
    batches = list(torch.randn(shape).split(asked.batch_size))  # type: ignore[no-untyped-call]
    found = audit(model, batches[:2])
    repairs = sum("repair" in finding.evidence for finding in found.findings)
    ratios = []
    for _ in range(asked.pairs):
        began = time.process_time()
        audit(model, batches)
        audited = time.process_time() - began
        needed = bare(model, batches, repairs)
        ratios.append(audited / needed)
        print(f"audit {audited:.2f} s, {3 + repairs} passes {needed:.2f} s: {ratios[-1]:.3f}")
    print(
        f"median {statistics.median(ratios):.3f}, range {min(ratios):.3f} to {max(ratios):.3f}, "
        f"n = {asked.pairs}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
