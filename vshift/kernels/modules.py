"""Hands a network's layers to the CPU kernels."""

from __future__ import annotations

from torch import nn

from vshift import kernels
from vshift.networks.noise import Noise
from vshift.networks.norm import BatchNorm


def fuse(model: nn.Module) -> None:
    """Let noise and batch norm use the kernels of `vshift.kernels`, in place.

    A BN layer with nothing but a ReLU behind it does that ReLU as well, whose module becomes the
    identity. Parameters, buffers and names stay as they are, and so does what a hook sees of a BN
    layer's input; its output is the ReLU's. Where a kernel does not fit (a GPU, float64, ghost BN,
    noise for whole channels) the layers use PyTorch's operations as before.

    Raises:
        KernelsMissing: they cannot be had on this machine.
    """
    kernels.library()
    for module in list(model.modules()):
        if isinstance(module, Noise | BatchNorm):
            module.fused = True
        if isinstance(module, nn.Sequential):
            _join(module)


def _join(sequence: nn.Sequential) -> None:
    for i in range(len(sequence) - 1):
        layer, behind = sequence[i], sequence[i + 1]
        if isinstance(layer, BatchNorm) and isinstance(behind, nn.ReLU):
            layer.relu = True
            sequence[i + 1] = nn.Identity()
