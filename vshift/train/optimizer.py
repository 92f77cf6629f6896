"""Optimizers from a config."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from vshift.config import own_code
from vshift.config import training as config
from vshift.errors import ConfigError
from vshift.shift.sites import NORMS
from vshift.text import suggest

Groups = list[dict[str, Any]]


class Optimizer(Protocol):
    """What the training loop needs of an optimizer: the interface of `torch.optim.Optimizer`."""

    param_groups: Groups

    def zero_grad(self) -> None: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class FixedStateOptimizer(ABC):
    """An update by PyTorch's own function, with its state in tensors that stay in their place.

    Making an instance of PyTorch's classes imports its compiler: 1.3 to 2.9 s in every run's start
    (PyTorch 2.14, two CPU cores). Besides, the state exists from the beginning and is zero, so that
    a captured step finds it in its place.

    Args:
        groups: each with `params`, and with options of its own.
        names: of what is kept for each weight, in the words of the checkpoint.
        options: of all groups.
    """

    def __init__(self, groups: Groups, names: Iterable[str], **options: Any) -> None:
        self.param_groups: Groups = [{**options, **group} for group in groups]
        weights = [weight for group in groups for weight in group["params"]]
        self.on_cuda = all(weight.is_cuda for weight in weights)
        self.state = {name: {w: self._initial(name, w) for w in weights} for name in names}

    def _initial(self, name: str, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, [weight.grad for weight in weights], options)

    @abstractmethod
    def _update(self, weights: list[Tensor], gradients: list[Tensor], options: Any) -> None: ...

    def _of(self, name: str, weights: list[Tensor]) -> list[Tensor]:
        return [self.state[name][weight] for weight in weights]

    def tensors(self) -> list[Tensor]:
        """What `step` changes besides the weights, in the weights' order."""
        return [tensor for kept in self.state.values() for tensor in kept.values()]

    def state_dict(self) -> dict[str, Any]:
        return {name: list(kept.values()) for name, kept in self.state.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the state in place; LookupError, ValueError or RuntimeError if it does not fit."""
        for name, kept in self.state.items():
            for tensor, saved in zip(kept.values(), state_dict[name], strict=True):
                tensor.copy_(saved)


class SGD(FixedStateOptimizer):
    """The update of `torch.optim.SGD`; momentum that starts at zero gives the same first step.

    Args:
        groups: see `FixedStateOptimizer`.
        options: `lr`, `momentum`, `weight_decay`, `nesterov`.
    """

    def __init__(self, groups: Groups, **options: Any) -> None:
        super().__init__(groups, ["momenta"] if options["momentum"] else [], **options)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], options: Any) -> None:
        momenta: list[Tensor | None] = [None] * len(weights)
        if options["momentum"]:
            momenta = [*self._of("momenta", weights)]
        sgd(
            weights,
            gradients,
            momenta,
            # One kernel for the whole update, and a learning rate that may live on the device.
            foreach=not self.on_cuda,
            fused=self.on_cuda,
            dampening=0.0,
            maximize=False,
            **options,
        )


class AdamW(FixedStateOptimizer):
    """The update of `torch.optim.AdamW(fused=True)`.

    Args:
        groups: see `FixedStateOptimizer`.
        options: `lr`, `beta1`, `beta2`, `eps`, `weight_decay`, `amsgrad`.
    """

    def __init__(self, groups: Groups, **options: Any) -> None:
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options["amsgrad"] else [])]
        super().__init__(groups, [*names, "step"], **options)

    def _initial(self, name: str, weight: Tensor) -> Tensor:
        # A number per weight, on its device, because weights without a gradient are left out.
        return weight.new_zeros(()) if name == "step" else super()._initial(name, weight)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], options: Any) -> None:
        adamw(
            weights,
            gradients,
            self._of("exp_avg", weights),
            self._of("exp_avg_sq", weights),
            self._of("max_exp_avg_sq", weights) if options["amsgrad"] else [],
            self._of("step", weights),
            fused=True,
            maximize=False,
            **options,
        )


def make_optimizer(model: nn.Module, config_: config.AnyOptimizer) -> Optimizer:
    """The optimizer of a model's weights; with `train: norm` the others are frozen.

    Raises:
        ConfigError: nothing to train, options that PyTorch's class does not take, or an optimizer
            of one's own that fails or is none.
    """
    if config_.train == "norm":
        _freeze_all_but_norms(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ConfigError(
            f"optimizer.train: {config_.train} trains nothing here; the network has no norm, "
            "of ours or of PyTorch's, with a scale and a shift"
            if config_.train == "norm"
            else "network: it has no weights to train"
        )
    match config_:
        case config.SGD():
            return SGD(
                _groups(weights, config_),
                lr=config_.learning_rate,
                momentum=config_.momentum,
                weight_decay=config_.weight_decay,
                nesterov=config_.nesterov,
            )
        case config.AdamW():
            beta1, beta2 = config_.betas
            return AdamW(
                _groups(weights, config_),
                lr=config_.learning_rate,
                beta1=beta1,
                beta2=beta2,
                eps=config_.eps,
                weight_decay=config_.weight_decay,
                amsgrad=config_.amsgrad,
            )
        case config.TorchOptimizer():
            return _torch_optimizer(weights, config_)
        case config.OwnOptimizer():
            return _own_optimizer(weights, config_)


def _freeze_all_but_norms(model: nn.Module) -> None:
    for module in model.modules():
        if not isinstance(module, tuple(NORMS.values())):
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)


def _groups(weights: list[nn.Parameter], config_: config.SGD | config.AdamW) -> Groups:
    """All weights, or apart from the others those with one value per channel, not decayed."""
    decayed = [w for w in weights if w.ndim > 1 or config_.decay_norm_and_bias]
    others = [w for w in weights if w.ndim <= 1 and not config_.decay_norm_and_bias]
    return [{"params": decayed}, *([{"params": others, "weight_decay": 0.0}] if others else [])]


def _torch_optimizer(
    weights: list[nn.Parameter], config_: config.TorchOptimizer
) -> torch.optim.Optimizer:
    kind = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__}[config_.name]
    # A graph or a second derivative of the step is nobody's here.
    reserved = {"params", "lr", "capturable", "differentiable"}
    allowed = [name for name in inspect.signature(kind).parameters if name not in reserved]
    if unknown := [name for name in config_.args if name not in allowed]:
        raise ConfigError(
            *(
                f"optimizer.args.{name}: torch.optim.{kind.__name__} has no such option; "
                f"{suggest(name, allowed)}allowed here: {', '.join(allowed)}"
                for name in unknown
            )
        )
    try:
        optimizer: torch.optim.Optimizer = kind(weights, lr=config_.learning_rate, **config_.args)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"optimizer.args: torch.optim.{kind.__name__} says: {error}") from None
    return optimizer


def _own_optimizer(weights: list[nn.Parameter], part: config.OwnOptimizer) -> Optimizer:
    rate = part.learning_rate
    optimizer: Optimizer = own_code.call(part, params=weights, lr=rate, learning_rate=rate)
    needed = ("param_groups", "zero_grad", "step", "state_dict", "load_state_dict")
    lacking = [name for name in needed if not hasattr(optimizer, name)]
    if lacking:
        raise ConfigError(
            f"{part.reference} gave {type(optimizer).__name__}, which has no "
            f"{lacking[0]}; an optimizer has what torch.optim.Optimizer has: {', '.join(needed)}"
        )
    if not all("lr" in group for group in optimizer.param_groups):
        raise ConfigError(
            f"{part.reference}: the param_groups of its optimizer have no `lr`, which schedules set"
        )
    return optimizer
