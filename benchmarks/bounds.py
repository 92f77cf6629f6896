"""How fast a network could train on a device: bounds from its layers and the device's two peaks.

Two bounds are common: `arithmetic` counts the operations alone, and the others also count how
often each activation travels between memory and processor. Per value of a tensor, forward and
backward together, in passes of 2 bytes (bf16):

| operation | eager | inductor | ideal |
|---|---|---|---|
| convolution, per input and per output value | 3 | 3 | 3 |
| batch norm | 8 | 8 | 0 |
| activation | 5 | 0 | 0 |
| sum of a residual block | 6 | 3 | 2 |
| concatenation of a dense block | 5 | 3 | 2 |

Where a convolution has as many inputs as outputs, that makes 19, 14 and 6 passes over each value of
conv + BN + ReLU. Where they come from:

- convolution: forward reads the input and writes the output; backward reads the output's gradient
  twice (for the input's and for the weights') and the input once, and writes the input's gradient;
- batch norm: forward reads for the statistics, reads again and writes; backward reads gradient and
  input for two sums, reads both again and writes;
- activation: reads and writes; backward reads gradient and output, and writes. A compiler makes it
  part of the batch norm before it;
- sum: reads two and writes; backward adds up the two gradients of what the block read. A compiler
  keeps three of these passes, and a perfect one makes them part of the convolution before them;
- concatenation: reads and writes; backward adds up two gradients.

A convolution takes the longer of its arithmetic and its traffic; the other layers' traffic adds to
that, except in `ideal`, where the convolution before hides it. Weights travel once per step, as
8 float32 values per parameter: copies in bf16, gradient, momentum and update. Noise, the loss and
the images themselves are not counted, so every bound is generous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.results import PerBound
from vshift.networks.blocks import Dense, Residual
from vshift.networks.summary import Layer

BF16 = 2  # bytes
CONVOLUTION = 3  # passes over each input and each output value
WEIGHTS = 8 * 4  # bytes per parameter and step
_WEIGHTED = (nn.Conv2d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)


@dataclass(frozen=True)
class Peaks:
    """A device's best: floating-point operations per second, and bytes per second.

    Attributes:
        precision: in which `flops` is reached.
    """

    flops: float
    bytes_per_second: float
    precision: str = "bf16"


@dataclass(frozen=True)
class Passes:
    """Passes over each value, forward and backward together; see the module's table."""

    norm: int
    activation: int
    sum: int
    concatenation: int

    def over(self, layer: Layer) -> int:
        """Values that travel because of a layer without weights."""
        match layer.module:
            case _BatchNorm() | nn.GroupNorm():
                return self.norm * layer.outputs
            case Residual():
                return self.sum * layer.outputs
            case Dense():
                return self.concatenation * layer.outputs
            case module if isinstance(module, _ACTIVATIONS):
                return self.activation * layer.outputs
            case _:
                return 0


EAGER = Passes(norm=8, activation=5, sum=6, concatenation=5)
INDUCTOR = Passes(norm=8, activation=0, sum=3, concatenation=3)
IDEAL = Passes(norm=0, activation=0, sum=2, concatenation=2)


def bounds_of(layers: Sequence[Layer], parameters: int, batch: int, peaks: Peaks) -> PerBound:
    """The most training images per second, in bf16 with batches of `batch` images.

    Args:
        layers: as `vshift.networks.summary.trace` gives them.
        parameters: of the whole network.
    """
    operations = 6 * sum(layer.macs for layer in layers)  # 3 × forward, 2 for each MAC
    weights = parameters * WEIGHTS / batch / peaks.bytes_per_second
    return PerBound(
        arithmetic=peaks.flops / operations,
        eager=1 / (weights + _seconds(layers, EAGER, peaks)),
        inductor=1 / (weights + _seconds(layers, INDUCTOR, peaks)),
        ideal=1 / (weights + _seconds(layers, IDEAL, peaks, hidden=True)),
    )


def _seconds(
    layers: Sequence[Layer], passes: Passes, peaks: Peaks, *, hidden: bool = False
) -> float:
    """Seconds per image; if `hidden`, a convolution hides the traffic of the layers after it."""
    total = arithmetic = travelling = 0.0
    for layer in layers:
        if isinstance(layer.module, _WEIGHTED):
            total += max(arithmetic, travelling)
            arithmetic = 6 * layer.macs / peaks.flops
            travelling = CONVOLUTION * (layer.inputs + layer.outputs) * BF16
            travelling /= peaks.bytes_per_second
        else:
            seconds = passes.over(layer) * BF16 / peaks.bytes_per_second
            travelling += seconds if hidden else 0.0
            total += 0.0 if hidden else seconds
    return total + max(arithmetic, travelling)
