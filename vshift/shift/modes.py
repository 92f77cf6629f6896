"""Noise and BN switched each for itself, which `model.train()` and `model.eval()` cannot do.

Noise is what these modules know to be noise (`noise_modules`). A random operation that a forward
calls by itself, such as `F.dropout(x, training=self.training)`, follows its own module, which is in
eval mode here: it stays off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vshift.networks.noise import Noise
from vshift.networks.norm import BatchNorm
from vshift.shift.moments import batch_moments, watching
from vshift.shift.probe import batch_norms

# `<layer>.running_mean` and `<layer>.running_var` of every BN layer, named as in a state dict.
BNState = Mapping[str, Tensor]


def noise_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every `vshift.networks.noise.Noise` and every dropout module of PyTorch's, by name."""
    found = model.named_modules()
    return {name: module for name, module in found if isinstance(module, Noise | _DropoutNd)}


@contextmanager
def modes(model: nn.Module, *, noise: bool, norm: Literal["batch", "running"]) -> Iterator[None]:
    """Noise on or off, BN on each batch's or on running statistics, all else in eval mode.

    Afterwards every module's mode is as it was, and with `batch` so are the BN layers' buffers,
    which move inside. Random numbers are drawn as they come: see `seeded`.

    Args:
        norm: `batch`, each batch's mean and biased variance, as in training; `running`, the
            buffers. BN layers without running statistics always use the batch's.

    Raises:
        ValueError: for another word; with `batch`, inside and from PyTorch, when a batch holds a
            single value per channel.
    """
    if norm not in ("batch", "running"):
        raise ValueError(f"norm is batch or running, not {norm!r}")
    norms = list(batch_norms(model).values())
    # vshift's BN may be told to test on batch statistics; here the caller says which.
    told = [(layer, layer.evaluate) for layer in norms if isinstance(layer, BatchNorm)]
    before = [(module, module.training) for module in model.modules()]
    moving = norms if norm == "batch" else []
    buffers = [(b, b.clone()) for layer in moving for b in layer.buffers(recurse=False)]
    try:
        _set(model.modules(), False)
        _set(noise_modules(model).values(), noise)
        _set(norms, norm == "batch")
        for layer, _ in told:
            layer.evaluate = "running"
        yield
    finally:
        for layer, evaluate in told:
            layer.evaluate = evaluate
        for module, mode in before:
            module.training = mode
        with torch.no_grad():
            for buffer, old in buffers:
                buffer.copy_(old)


def _set(modules: Iterable[nn.Module], training: bool) -> None:
    # Not module.train(), which models override and which reaches the children as well.
    for module in modules:
        module.training = training


@contextmanager
def batch_statistics(model: nn.Module, own: float = 1.0) -> Iterator[None]:
    """Eval mode, noise off, with BN on a mix of each batch's own and the running statistics.

    mean = own·(batch mean) + (1 − own)·(running mean), the second moment likewise, and the variance
    is what remains of it (Summers & Dinneen 2020, arXiv 1906.03548, section 3.1). The batch's
    variance is the biased one, as in training. With `own` 1 this is prediction-time BN (Nado et
    al. 2020, arXiv 2006.10963), with 0 plain eval mode. Meant for evaluation: gradients take the
    statistics for constants. A batch of one value per channel has variance 0, which no error tells.

    The buffers are exchanged inside and the same tensors, untouched, put back afterwards.

    Raises:
        ValueError: if `own` is not between 0 and 1.
    """
    if not 0 <= own <= 1:
        raise ValueError(f"own is a share between 0 and 1, not {own}")
    layers = batch_norms(model)
    kept = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}

    def mix(name: str, x: Tensor) -> None:
        mean, variance = kept[name]
        assert mean is not None
        assert variance is not None
        own_mean, own_variance = batch_moments(x.detach())
        # The mixed second moment less the mixed mean's square, written so that nothing cancels.
        apart = (own_mean - mean).square() * (own * (1 - own))
        mixed = own * own_variance + (1 - own) * variance + apart
        layers[name].running_mean = (own * own_mean + (1 - own) * mean).to(mean.dtype)
        layers[name].running_var = mixed.to(variance.dtype)

    try:
        with modes(model, noise=False, norm="running"), watching(layers, mix):
            yield
    finally:
        for name, layer in layers.items():
            layer.running_mean, layer.running_var = kept[name]


def bn_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every BN layer's running mean and variance, on their device."""
    return {
        f"{name}.{kind}".removeprefix("."): getattr(layer, kind).detach().clone()
        for name, layer in batch_norms(model).items()
        for kind in ("running_mean", "running_var")
    }


@torch.no_grad()
def load_bn_state(model: nn.Module, state: BNState) -> None:
    """Copy running means and variances into the model's buffers: all of them, or none.

    Raises:
        ValueError: if names or shapes are not those of this model's BN layers.
    """
    own = {name: tensor for name, tensor in model.named_buffers() if name in bn_state(model)}
    if wrong := sorted(own.keys() ^ state.keys()):
        side = "lacks" if wrong[0] in own else "has an unknown"
        raise ValueError(f"the BN statistics do not fit the model: {side} {wrong[0]}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            shapes = f"{list(state[name].shape)}, not {list(tensor.shape)}"
            raise ValueError(f"the BN statistics do not fit the model: {name} is {shapes}")
    for name, tensor in own.items():
        tensor.copy_(state[name])


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers from `seed` on the CPU and the model's devices; states restored afterwards."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also reseed devices whose state is not restored.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
