"""Use a probe in your own training loop, and save a run folder for `vshift compare`.

    python -m examples.plain_loop [RUNS_DIR]
    vshift compare RUNS_DIR

About ten seconds on one CPU core.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from examples.patients import Net, data
from vshift import VarianceProbe


def main(runs_dir: Path) -> Path:
    torch.manual_seed(0)
    train, test = data(0), data(1, 256)
    model = Net(before_bn2=nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    probe = VarianceProbe(model)  # before the loop
    for _ in range(3):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = [(model(x).argmax(1) == y).float().mean() for x, y in test]
        accuracy = 100 * float(torch.stack(hits).mean())
        probe.end_epoch(train, test_accuracy=accuracy)  # after each epoch
    probe.remove()

    print(probe.frame().drop(columns=["index", "noise_before"]).to_string(index=False))
    return probe.save(runs_dir / "plain-loop" / "seed-0")


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    print(main(Path(where)))
