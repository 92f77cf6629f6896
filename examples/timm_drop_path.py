"""Audit a timm model with DropPath: where stochastic depth reaches batch norm, and its effect.

    pip install 'vshift[timm]'
    python -m examples.timm_drop_path

A small ResNet is trained briefly on 32-pixel images. Its DropPath is at the end of each residual
branch, after the branch's last batch norm, and reaches the batch norms of the next block through
the addition and a convolution.
"""

from __future__ import annotations

import timm
import torch

from examples.patients import data, fit
from vshift import audit
from vshift.auditing import Audit


def main(rate: float = 0.5) -> Audit:
    torch.manual_seed(0)
    batches = [(torch.nn.functional.interpolate(x, size=32), y) for x, y in data(0, 256)]
    model = timm.create_model(
        "test_resnet", num_classes=4, drop_path_rate=rate, zero_init_last=False
    )
    fit(model, batches, epochs=6, rate=0.05)
    return audit(model, batches)


if __name__ == "__main__":
    found = main()
    print(found)
    print("\nNoise found by running:", *found.noise.training, sep="\n  ")
