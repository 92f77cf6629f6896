"""Kernels for the CPU: noise, and batch norm with ReLU, several times as fast as PyTorch's own.

They do what `vshift.networks.noise` and `vshift.networks.norm` do with PyTorch's operations, which
stay the reference: tests hold one against the other. `fuse` turns a network's layers over to them.
"""

from vshift.kernels.build import KernelsMissing, library
from vshift.kernels.functions import DROP, NORMAL, UNIFORM, affine, fits, multiply, normalise

__all__ = [
    "DROP",
    "NORMAL",
    "UNIFORM",
    "KernelsMissing",
    "affine",
    "fits",
    "library",
    "multiply",
    "normalise",
]
