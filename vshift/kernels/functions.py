"""The kernels as functions of tensors, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vshift.kernels.build import library

# Kinds of multipliers, as the kernels number them.
DROP, UNIFORM, NORMAL = 0, 1, 2


def fits(x: Tensor) -> bool:
    """Whether the kernels can work on a tensor: bf16 or float32 on the CPU, [N, C], or [N, C, H, W]
    in channels_last."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32) or not x.numel():
        return False
    if x.ndim == 2:
        return x.is_contiguous()
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def multiply(x: Tensor, kind: int, scale: float, kept: int = 0) -> Tensor:
    """x times independent random multipliers, one for each value; the gradient uses the same.

    They are a function of a 64-bit key, drawn from PyTorch's default generator, and of the value's
    place in memory, by the counter-based generator Threefry4x32-20 (Salmon et al. 2011). Nothing
    but the key is kept for the gradient.

    Args:
        x: dense, bf16 or float32, on the CPU.
        kind: DROP, `scale` with probability kept/2¹⁶ and else 0, from 16 random bits; UNIFORM, the
            middles of 2¹⁶ cells of (1 − scale, 1 + scale); NORMAL, mean 1 and standard deviation
            `scale`, by Box and Muller from 64 bits a pair.
    """
    key = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)) % 2**64
    product: Tensor = _Multiply.apply(x, kind, scale, kept, key)
    return product


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int, scale: float, kept: int, key: int) -> Tensor:
        ctx.drawn = kind, scale, kept, key
        ctx.strides = x.stride()
        return _multiplied(x, kind, scale, kept, key)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
        if dy.stride() != ctx.strides:  # the multipliers follow the memory of x
            dy = torch.empty_strided(dy.shape, ctx.strides, dtype=dy.dtype).copy_(dy)
        return _multiplied(dy, *ctx.drawn), None, None, None, None


def _multiplied(x: Tensor, kind: int, scale: float, kept: int, key: int) -> Tensor:
    y = torch.empty_like(x)
    bf16, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
    library().vshift_multiply(
        x.data_ptr(), y.data_ptr(), x.numel(), bf16, kind, key, scale, kept, threads
    )
    return y


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    mean: Tensor,
    variance: Tensor,
    relu: bool,
) -> Tensor:
    """Batch norm of a training batch, followed by ReLU where `relu` is true.

    Args:
        x: a tensor that `fits`, with at least two values per channel.
        weight, bias: float32 [C] or None.
        mean, variance: float32 [C]; the batch's mean and UNBIASED variance are written here.

    Sums are taken in blocks of 64 values about their own mean in float32 and merged in float64
    (Chan et al. 1983), which a mean far from zero does not harm.
    """
    output: Tensor = _Normalise.apply(x, weight, bias, eps, mean, variance, relu)
    return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        mean: Tensor,
        variance: Tensor,
        relu: bool,
    ) -> Tensor:
        channels = x.shape[1]
        y = torch.empty_like(x)
        # The rows: scale and shift of y = x·scale + shift, mean, unbiased variance.
        made = torch.empty(4, channels)
        a, b, own_mean, own_variance = (row.data_ptr() for row in made.unbind())
        library().vshift_norm_forward(
            x.data_ptr(),
            y.data_ptr(),
            x.numel() // channels,
            channels,
            x.dtype == torch.bfloat16,
            _pointer(weight),
            _pointer(bias),
            eps,
            a,
            b,
            own_mean,
            own_variance,
            relu,
            torch.get_num_threads(),
        )
        mean.copy_(made[2])
        variance.copy_(made[3])
        ctx.save_for_backward(x, made)
        ctx.eps, ctx.relu = eps, relu
        ctx.affine = weight is not None, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, made = ctx.saved_tensors
        channels = x.shape[1]
        if dy.stride() != x.stride() or dy.dtype != x.dtype:
            dy = torch.empty_like(x).copy_(dy)
        dx = torch.empty_like(x)
        gradients = torch.empty(2, channels)
        library().vshift_norm_backward(
            x.data_ptr(),
            dy.data_ptr(),
            dx.data_ptr(),
            x.numel() // channels,
            channels,
            x.dtype == torch.bfloat16,
            ctx.eps,
            *(row.data_ptr() for row in made.unbind()),
            *(row.data_ptr() for row in gradients.unbind()),
            ctx.relu,
            torch.get_num_threads(),
        )
        weight, bias = (
            g if wanted else None for g, wanted in zip(gradients, ctx.affine, strict=True)
        )
        return dx, weight, bias, None, None, None, None


def affine(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """x·scale + shift for each channel, followed by ReLU where asked; without a gradient.

    Args:
        x: a tensor that `fits`. scale, shift: float32 [C], contiguous.
    """
    y = torch.empty_like(x)
    channels = x.shape[1]
    library().vshift_affine(
        x.data_ptr(),
        y.data_ptr(),
        x.numel() // channels,
        channels,
        x.dtype == torch.bfloat16,
        scale.data_ptr(),
        shift.data_ptr(),
        relu,
        torch.get_num_threads(),
    )
    return y


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
