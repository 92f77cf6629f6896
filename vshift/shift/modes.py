"""Modes that `model.train()` and `model.eval()` cannot set: noise and BN each on its own.

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
from vshift.shift.stats import batch_moments, batch_norms, capturing_inputs

# `<layer>.running_mean` and `<layer>.running_var` of every BN layer, named as in a state dict.
BNState = Mapping[str, Tensor]


def noise_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every `vshift.networks.noise.Noise` and every dropout module of PyTorch's, by name."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, Noise | _DropoutNd)}


def is_off(noise: nn.Module) -> bool:
    """Whether a noise module's strength is 0, so that it is the identity in training too."""
    return any(getattr(noise, key, None) == 0 for key in ("p", "rate", "variance"))


def acts(noise: nn.Module) -> bool:
    """Whether a noise module does something in training, at this point of the run."""
    return getattr(noise, "active", True) and not is_off(noise)


@contextmanager
def modes(
    model: nn.Module, *, noise: bool, norm: Literal["batch", "training", "running"]
) -> Iterator[None]:
    """Switch noise on or off and BN to batch or running statistics; all else is in eval mode.

    On exit every module's mode is restored, and the BN layers' buffers, which move inside with
    `batch` and `training`. Random numbers are drawn as they come: see `seeded`.

    Args:
        norm: `batch`, each batch's mean and biased variance; `training`, whatever the layer does in
            training, which is the same but for batch renorm and frozen layers; `running`, the
            buffers. BN layers without running statistics always use the batch's.

    Raises:
        ValueError: for another word; with `batch`, inside and from PyTorch, when a batch holds a
            single value per channel.
    """
    if norm not in ("batch", "training", "running"):
        raise ValueError(f"norm is batch, training or running, not {norm!r}")
    norms = list(batch_norms(model).values())
    # vshift's BN can be configured to test on batch statistics; here the caller decides.
    configured = [(layer, layer.evaluate) for layer in norms if isinstance(layer, BatchNorm)]
    training = [(module, module.training) for module in model.modules()]
    moving = [] if norm == "running" else norms
    buffers = [(b, b.clone()) for layer in moving for b in layer.buffers(recurse=False)]
    try:
        _set_training(model.modules(), False)
        inside = (part for module in noise_modules(model).values() for part in module.modules())
        _set_training(inside, noise)
        _set_training(norms, norm != "running")
        for layer, _ in configured:
            layer.evaluate = "running"
            if norm == "batch" and not layer.trains_on_batch:
                layer.training, layer.evaluate = False, "batch"
        yield
    finally:
        for layer, evaluate in configured:
            layer.evaluate = evaluate
        _restore(training, buffers)


def _set_training(modules: Iterable[nn.Module], training: bool) -> None:
    # Not module.train(), which models override and which reaches the children as well.
    for module in modules:
        module.training = training


@torch.no_grad()
def _restore(
    training: Iterable[tuple[nn.Module, bool]], buffers: Iterable[tuple[Tensor, Tensor]]
) -> None:
    for module, mode in training:
        module.training = mode
    for buffer, old in buffers:
        buffer.copy_(old)


@contextmanager
def restoring_state(model: nn.Module) -> Iterator[None]:
    """Restore buffers, train/eval modes and random states on exit."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    training = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            yield
        finally:
            _restore(training, buffers)


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw random numbers from `seed`, on the CPU and the model's devices; restored on exit."""
    devices = _cuda_devices(model)
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also reseed devices whose state is not restored.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})


@contextmanager
def batch_statistics(model: nn.Module, batch_weight: float = 1.0) -> Iterator[None]:
    """Eval mode, noise off, with BN on a mix of each batch's and the running statistics.

    mean = w·(batch mean) + (1 − w)·(running mean), the second moment likewise, and the variance is
    what remains of it (Summers & Dinneen 2020, arXiv 1906.03548, section 3.1). The batch's variance
    is the biased one, as in training. With `batch_weight` w = 1 this is prediction-time BN (Nado et
    al. 2020, arXiv 2006.10963), with 0 plain eval mode. Meant for evaluation: gradients treat the
    statistics as constants. A batch of one value per channel has variance 0, which raises no error.

    The buffers are exchanged inside; on exit the same tensors are put back, untouched.

    Raises:
        ValueError: if `batch_weight` is not between 0 and 1.
    """
    w = batch_weight
    if not 0 <= w <= 1:
        raise ValueError(f"batch_weight is a share between 0 and 1, not {w}")
    layers = batch_norms(model)
    running = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}

    def mix(name: str, x: Tensor) -> None:
        mean, variance = running[name]
        assert mean is not None
        assert variance is not None
        batch_mean, batch_variance = batch_moments(x.detach())
        # The mixed second moment less the mixed mean's square, written so that nothing cancels.
        between = (batch_mean - mean).square() * (w * (1 - w))
        mixed = w * batch_variance + (1 - w) * variance + between
        layers[name].running_mean = (w * batch_mean + (1 - w) * mean).to(mean.dtype)
        layers[name].running_var = mixed.to(variance.dtype)

    try:
        with modes(model, noise=False, norm="running"), capturing_inputs(layers, mix):
            yield
    finally:
        for name, layer in layers.items():
            layer.running_mean, layer.running_var = running[name]


def _running_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{kind}".removeprefix("."): getattr(layer, kind).detach()
        for name, layer in batch_norms(model).items()
        for kind in ("running_mean", "running_var")
    }


def bn_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every BN layer's running mean and variance, on their device."""
    return {name: buffer.clone() for name, buffer in _running_buffers(model).items()}


@torch.no_grad()
def load_bn_state(model: nn.Module, state: BNState) -> None:
    """Copy running means and variances into the model's buffers: all of them, or none.

    Raises:
        ValueError: if names or shapes are not those of this model's BN layers.
    """
    buffers = _running_buffers(model)
    if wrong := sorted(buffers.keys() ^ state.keys()):
        side = "lacks" if wrong[0] in buffers else "has an unknown"
        raise ValueError(f"the BN statistics do not fit the model: {side} {wrong[0]}")
    for name, buffer in buffers.items():
        if buffer.shape != state[name].shape:
            shapes = f"{list(state[name].shape)}, not {list(buffer.shape)}"
            raise ValueError(f"the BN statistics do not fit the model: {name} is {shapes}")
    for name, buffer in buffers.items():
        buffer.copy_(state[name])
