"""Further kinds of fault, in an MLP and in a convolutional network, each with its healthy twin.

A kind is planted by `plant(net, seed, broken)`; `codes` are the findings that name it right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.patients import Net, Patient, data, fit, norms, vectors
from tests.auditing import attacked, gaps
from tests.auditing.nets import NETS, built, healthy, inputs

# ---- an eps that is not that of training


def _eps(number: int, scale: float, eps: float) -> Callable[[str, int, bool], Patient]:
    def plant(net: str, seed: int, broken: bool) -> Patient:
        model, batches = healthy(net, seed)
        layer = norms(model)[f"bn{number}"]
        with torch.no_grad():
            for parameter in model.get_submodule(f"conv{number}").parameters():
                parameter *= scale
            cast(Tensor, layer.running_mean).mul_(scale)
            cast(Tensor, layer.running_var).mul_(scale**2)
        layer.eps = eps if broken else scale**2 * layer.eps
        return Patient(model, batches, (f"bn{number}",))

    return plant


# ---- small distances, real harm


def small_errors(net: str, seed: int, broken: bool) -> Patient:
    """Every one of ten layers is off by 0.08 standard deviations."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(10):
        if net == "MLP":
            layers += [nn.Linear(64 if i else 20, 64), nn.BatchNorm1d(64), nn.ReLU()]
        else:
            layers += [nn.Conv2d(12 if i else 3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    last = (
        [nn.Linear(64, 4)] if net == "MLP" else [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, 4)]
    )
    batches = vectors(seed, 2048, 128) if net == "MLP" else data(seed, 1024, 64)
    model = fit(nn.Sequential(*layers, *last), batches, 5, 0.05 if net == "MLP" else 0.02)
    if broken:
        with torch.no_grad():
            for layer in norms(model).values():
                running = cast(Tensor, layer.running_mean)
                running += 0.08 * cast(Tensor, layer.running_var).sqrt()
    return Patient(model, batches)


# ---- dummy forwards


def _dummies(make: Callable[..., Tensor], size: int) -> Callable[[str, int, bool], Patient]:
    def plant(net: str, seed: int, broken: bool) -> Patient:
        model, batches = healthy(net, seed)
        batches = [(2 * x - 0.4, y) for x, y in batches]  # not distributed as random numbers are
        fit(model, batches, epochs=2, rate=0.01)
        if broken:
            torch.manual_seed(1000 + seed)
            with torch.no_grad():
                for _ in range(10):
                    model(make(size, *batches[0][0].shape[1:]))
        return Patient(model, batches)

    return plant


# ---- domains in turn


def domains_in_turn(net: str, seed: int, broken: bool) -> Patient:
    """The training loader gives a batch of one domain, then one of another; tested on the first.

    In the twin every batch holds both, and so does the test.
    """
    torch.manual_seed(seed)
    first = inputs(net, seed)
    second = [(3 * x + 2, y) for x, y in inputs(net, seed + 50)]
    if broken:
        training = [batch for pair in zip(first, second, strict=True) for batch in pair]
    else:
        training = [
            (torch.cat([a, b]), torch.cat([y, z]))
            for (a, y), (b, z) in zip(first, second, strict=True)
        ]
    model = fit(NETS[net](), training, epochs=4, rate=0.02)
    return Patient(
        model, first if broken else training, (), {"train_loader": training, "batches": 64}
    )


# ---- random answers, and batch norm that stays in training mode


class Attention(nn.Module):
    """Attention over four parts of the features, whose dropout does or does not follow the mode."""

    def __init__(self, features: int, follows: bool) -> None:
        super().__init__()
        self.map, self.follows = nn.Linear(features // 4, 3 * features // 4), follows

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.map(x.view(len(x), 4, -1)).chunk(3, -1)
        rate = 0.3 if self.training or not self.follows else 0.0
        return x + F.scaled_dot_product_attention(q, k, v, dropout_p=rate).flatten(1)


def attention_dropout(net: str, seed: int, broken: bool) -> Patient:
    features = 32 if net == "MLP" else 8 * 16
    return Patient(*built(net, seed, after_bn=Attention(features, not broken)), ("after_bn",))


class SetsMode(nn.Module):
    """Switches a batch norm to training mode in forward."""

    def __init__(self, model: Net) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        self.model.bn2.training = True
        return self.model(x)


def mode_set_in_forward(net: str, seed: int, broken: bool) -> Patient:
    model, batches = healthy(net, seed)
    return Patient(SetsMode(model) if broken else model, batches, ("model.bn2",))


def flag_set_after_eval(net: str, seed: int, broken: bool) -> Patient:
    """A batch norm is switched to training mode after eval()."""
    model, batches = healthy(net, seed)
    model.eval()
    model.bn2.train(broken)
    return Patient(model, batches, ("bn2",))


# ---- healthy only


class LogOfDithered(nn.Module):
    """Dither before a logarithm, as in front ends for audio."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.square()
        return (
            torch.log(x + 0.1 * torch.rand_like(x) + 0.05) if self.training else torch.log(x + 0.1)
        )


def dither_before_a_log(net: str, seed: int, broken: bool) -> Patient:
    return Patient(*built(net, seed, after_bn=LogOfDithered()))


@dataclass(frozen=True)
class Kind:
    """How a fault is planted, and the codes of the findings that name it; none if healthy."""

    plant: Callable[[str, int, bool], Patient]
    codes: tuple[str, ...] = ()


KINDS = {
    "eps of 1e-3, first layer": Kind(_eps(1, 0.01, 1e-3), ("variance_below_eps",)),
    "eps of 1e-3, second layer": Kind(_eps(2, 0.01, 1e-3), ("variance_below_eps",)),
    "eps of 1e-3, last layer": Kind(_eps(3, 0.01, 1e-3), ("variance_below_eps",)),
    "eps of 0.1, second layer": Kind(_eps(2, 0.1, 0.1), ("variance_below_eps",)),
    "small errors in ten layers": Kind(small_errors, ("stale",)),
    "10 dummies, normal, batches of 2": Kind(_dummies(torch.randn, 2), ("polluted",)),
    "10 dummies, normal, batches of 8": Kind(_dummies(torch.randn, 8), ("polluted",)),
    "10 dummies, uniform, batches of 32": Kind(_dummies(torch.rand, 32), ("polluted",)),
    "domains in turn": Kind(domains_in_turn, ("batches_not_random",)),
    "attention dropout in eval mode": Kind(attention_dropout, ("noise_live",)),
    "mode set in forward": Kind(mode_set_in_forward, ("bn_wrong_mode",)),
    "flag set after eval()": Kind(flag_set_after_eval, ("mixed_modes",)),
    "merged without transpose": Kind(gaps.merged_without_transpose, ("unexplained_gap",)),
    "own norm's statistics lost": Kind(gaps.own_norm_lost, ("unexplained_gap",)),
    "input statistics lost": Kind(gaps.input_statistics_lost, ("unexplained_gap",)),
    "codebook's average lost": Kind(gaps.codebook_lost, ("unexplained_gap",)),
    "norm in eval mode only": Kind(gaps.norm_only_in_eval, ("bn_only_in_eval",)),
    "norm skipped for single samples": Kind(gaps.skipped_for_one, ("batch_dependent",)),
    "norm made in forward": Kind(gaps.made_in_forward, ("bn_out_of_reach",)),
    "overflow in float16": Kind(gaps.overflow_in_half_precision, ("nonfinite",)),
    "norm without running statistics": Kind(gaps.without_running_statistics, ("batch_dependent",)),
    "healthy: dither before a log": Kind(dither_before_a_log),
    "healthy: attacked batches in turn": Kind(attacked.batches_in_turn),
    "healthy: attacked halves": Kind(attacked.halves),
    "healthy: halves with own norms": Kind(attacked.advprop),
    "healthy: own norms, clean tests": Kind(attacked.advprop_tested_on_clean_samples),
}
