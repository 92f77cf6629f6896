"""The noise and batch norm of `vshift.networks` by the CPU kernels."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.kernels import functions
from vshift.kernels.build import library
from vshift.networks import noise
from vshift.networks.norm import BatchNorm


def fuse(model: nn.Module, *, with_relu: bool = True) -> None:
    """Let a network's noise and batch norm use the kernels, in place.

    A BN layer with nothing but a ReLU after it does that ReLU as well, whose module becomes the
    identity. Parameters, buffers and names stay as they are, and so does what a hook sees of a BN
    layer's input and of a ReLU's output; a BN layer's output is the ReLU's. Where a kernel does not
    fit (a GPU, float64, ghost BN, noise for whole channels) the layers use PyTorch's operations as
    before.

    Args:
        with_relu: False leaves the ReLUs alone, for a network whose code may use the layers of an
            nn.Sequential one by one.

    Raises:
        KernelsMissing: they are not available on this machine.
    """
    library()
    for module in list(model.modules()):
        if type(module) in _FUSED:  # exactly: a subclass may compute something else
            # The same object: its hooks, and references to it and its buffers, remain valid.
            module.__class__ = _FUSED[type(module)]
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential) and with_relu:
            for place, (layer, following) in enumerate(itertools.pairwise(list(module))):
                # A hook sees, or as noise changes, what lies between them; noise after a ReLU is
                # its child.
                between = layer._forward_hooks or following._forward_pre_hooks
                if between or following._modules or not isinstance(following, nn.ReLU):
                    continue
                if isinstance(layer, FusedBatchNorm):
                    layer.relu = True
                    module[place + 1] = identity = nn.Identity()
                    # Shared, so that hooks on the ReLU, also later ones, see the identity's output.
                    identity._forward_hooks = following._forward_hooks


class FusedBatchNorm(BatchNorm):
    """`BatchNorm` in one kernel per pass, with the ReLU after it where `relu` is true."""

    relu = False

    def forward(self, input: Tensor) -> Tensor:
        if not self._fits(input):
            output = super().forward(input)
            return F.relu(output) if self.relu else output
        if not self.training:
            return self._scaled(input)
        output = functions.normalise(
            input, self.weight, self.bias, self.eps, self.batch_mean, self.batch_var, self.relu
        )
        if self.update:
            self._update_running()
        return output

    def _fits(self, input: Tensor) -> bool:
        if not functions.fits(input):
            return False
        if self.training:  # with one value per channel, let PyTorch raise its own error
            return self.ghost is None and not self.frozen and input.numel() > self.num_features
        return self.evaluate == "running" and not torch.is_grad_enabled()  # it has no gradient

    def _scaled(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = (self.running_var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -self.running_mean * scale
        shift = shift if self.bias is None else shift + self.bias
        return functions.affine(input, scale, shift, self.relu)


class _FusedMultiplicative(noise.Multiplicative):
    def product(self, x: Tensor) -> Tensor:
        """x times independent multipliers, by a kernel."""
        raise NotImplementedError

    def multiplied(self, x: Tensor) -> Tensor:
        if noise.UNITS[self.unit] < x.ndim or not functions.fits(x):  # per channel or per image
            return super().multiplied(x)
        return self.product(x)


class FusedDropout(_FusedMultiplicative, noise.Dropout):
    def product(self, x: Tensor) -> Tensor:
        kept = noise.keep_count(self.rate)
        return functions.multiply(x, functions.DROP, 2**16 / kept, kept)  # kept/2¹⁶ is 1 − rate


class FusedGaussian(_FusedMultiplicative, noise.Gaussian):
    def product(self, x: Tensor) -> Tensor:
        return functions.multiply(x, functions.NORMAL, math.sqrt(self.variance))


class FusedUniform(_FusedMultiplicative, noise.Uniform):
    def product(self, x: Tensor) -> Tensor:
        return functions.multiply(x, functions.UNIFORM, math.sqrt(3 * self.variance))


class FusedClassicDropout(noise.ClassicDropout):
    def noisy(self, x: Tensor) -> Tensor:
        if not functions.fits(x):
            return super().noisy(x)
        return functions.multiply(x, functions.DROP, 1.0, noise.keep_count(self.rate))


class FusedScaledDropout(noise.ScaledDropout):
    def noisy(self, x: Tensor) -> Tensor:
        if not functions.fits(x):
            return super().noisy(x)
        kept = noise.keep_count(self.rate)
        # √p/p, with p = kept/2¹⁶
        return functions.multiply(x, functions.DROP, 2**8 / math.sqrt(kept), kept)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BatchNorm: FusedBatchNorm,
    noise.Dropout: FusedDropout,
    noise.Gaussian: FusedGaussian,
    noise.Uniform: FusedUniform,
    noise.ClassicDropout: FusedClassicDropout,
    noise.ScaledDropout: FusedScaledDropout,
}
