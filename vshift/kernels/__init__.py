"""Kernels for the CPU: noise, and batch norm with ReLU, several times as fast as PyTorch's own.

`fuse` puts them into a network. They do what `vshift.networks.noise` and `vshift.networks.norm` do
with PyTorch's operations, which stay the reference: tests hold one against the other.
"""

from vshift.kernels.build import KernelsMissing, library, machine
from vshift.kernels.functions import affine, fits, multiply, normalise
from vshift.kernels.modules import fuse

__all__ = [
    "KernelsMissing",
    "affine",
    "fits",
    "fuse",
    "library",
    "machine",
    "multiply",
    "normalise",
]
