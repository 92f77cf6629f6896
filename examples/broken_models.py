"""A broken model and its healthy twin for each finding of `vshift.audit`.

    python -m examples.broken_models              every fault
    python -m examples.broken_models stale        one of them, with the full report

Each function takes a seed and whether to plant the fault. It returns a small trained model, the
arguments of `audit`, and the layers that a finding may name. About 25 seconds on one CPU core.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.broken_modes import (
    bn_only_in_eval,
    mixed_modes,
    mode_switch_changes_state,
    unexplained_gap,
)
from examples.broken_parts import instance_norm, noise_scale, output_nonfinite, spectral_norm
from examples.patients import Net, Patient, data, fit, norms, trained
from vshift import audit

ALL = ("bn1", "bn2", "bn3")


def nonfinite(seed: int, broken: bool) -> Patient:
    """One bad batch: its loss was skipped, but the infinity stayed in the buffers."""
    model, batches = trained(seed)
    if broken:
        model.bn2.running_var[3] = float("inf")
        model.bn3.running_mean[1] = float("nan")
    return Patient(model, batches, ("bn2",))


def never_updated(seed: int, broken: bool) -> Patient:
    """The averaged weights of training were saved without buffers."""
    model, batches = trained(seed)
    saved = dict(model.named_parameters()) if broken else model.state_dict()
    fresh = Net()
    fresh.load_state_dict(saved, strict=False)
    return Patient(fresh, batches, ALL)


def initial_bias(seed: int, broken: bool) -> Patient:
    """The statistics were reset a few steps before the end of training."""
    model, batches = trained(seed)
    if broken:
        for layer in norms(model).values():
            layer.reset_running_stats()
        with torch.no_grad():
            for images, _ in batches[:6]:
                model(images)
    return Patient(model, batches, ALL)


def momentum_low(seed: int, broken: bool) -> Patient:
    """Another framework's decay of 0.999 as a momentum of 0.001, which needs thousands of steps."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Net(momentum=0.001 if broken else 0.1)), ALL)


def momentum_high(seed: int, broken: bool) -> Patient:
    """A decay of 0.99 of another framework, copied into PyTorch as the momentum."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Net(momentum=0.99 if broken else 0.1)), ALL)


def polluted(seed: int, broken: bool) -> Patient:
    """A model summary ran dummy images through the model in train mode."""
    model, batches = trained(seed)
    if broken:
        with torch.no_grad():
            for _ in range(10):
                model(torch.zeros(2, 3, 8, 8))
    return Patient(model, batches, ALL)


def stale(seed: int, broken: bool) -> Patient:
    """One layer's weights were changed after training, but its statistics were not."""
    model, batches = trained(seed)
    if broken:
        with torch.no_grad():
            model.conv2.weight *= torch.linspace(0.3, 3, 8)[:, None, None, None]
    return Patient(model, batches, ("bn2",))


def tiny_batches(seed: int, broken: bool) -> Patient:
    """Batches of four after global pooling."""
    torch.manual_seed(seed)
    size = 4 if broken else 64
    batches = data(seed, 512, size)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.BatchNorm1d(16), nn.Linear(16, 4),
    )  # fmt: skip
    return Patient(fit(model, batches, epochs=16, rate=0.02), batches, ("4",))


def batches_not_random(seed: int, broken: bool) -> Patient:
    """The training loader is sorted by class."""
    torch.manual_seed(seed)
    images, labels = (torch.cat(parts) for parts in zip(*data(seed), strict=True))
    images = images + 1.5 * labels[:, None, None, None]  # classes differ in brightness
    order = labels.argsort() if broken else torch.randperm(len(labels))
    batches = list(zip(images[order].split(32), labels[order].split(32), strict=True))
    model = fit(Net(), batches, rate=0.01)
    return Patient(model, batches, (*ALL, None))


class Siamese(Net):
    """Two branches through the same layers."""

    def forward(self, pair: Tensor) -> Tensor:
        a, b = pair.chunk(2, 1)
        return self.head(self.features(a) + self.features(b))


def several_distributions(seed: int, broken: bool) -> Patient:
    """A siamese network whose branches get images with different value ranges."""
    torch.manual_seed(seed)
    second = 4.0 if broken else 1.0
    batches = [(torch.cat([x, second * x.flip(0)], 1), y) for x, y in data(seed)]
    return Patient(fit(Siamese(), batches, rate=0.02), batches, ALL)


class Stubborn(nn.BatchNorm2d):
    """A batch norm whose custom train() ignores the mode."""

    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)


def bn_wrong_mode(seed: int, broken: bool) -> Patient:
    """A batch norm that stays in train mode."""
    torch.manual_seed(seed)
    model = Net()
    if broken:
        model.bn2 = Stubborn(8)
    return Patient(*trained(seed, model), ("bn2",))


class StubbornDropout(nn.Dropout):
    """A dropout whose custom train() ignores the mode."""

    def train(self, mode: bool = True) -> StubbornDropout:
        return super().train(True)


def noise_wrong_mode(seed: int, broken: bool) -> Patient:
    """A dropout that stays in train mode."""
    torch.manual_seed(seed)
    noise = StubbornDropout(0.3) if broken else nn.Dropout(0.3)
    return Patient(*trained(seed, Net(after_bn=noise)), ("after_bn",))


class Hidden(Net):
    """A network that keeps a layer in a plain list, where `modules()` does not find it."""

    def __init__(self, layer: nn.Module, broken: bool) -> None:
        super().__init__()
        self.extra = [layer] if broken else nn.ModuleList([layer])

    def features(self, x: Tensor) -> Tensor:
        return self.extra[0](super().features(x))


def bn_out_of_reach(seed: int, broken: bool) -> Patient:
    """A batch norm that is not registered as a module."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Hidden(nn.BatchNorm2d(8), broken)), ("extra[0]",))


def noise_out_of_reach(seed: int, broken: bool) -> Patient:
    """A dropout that is not registered as a module."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Hidden(nn.Dropout(0.3), broken)), ("extra[0]",))


class Functional(nn.Module):
    """F.dropout that does or does not follow the mode."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, training=self.training if self.asks else True)


def noise_live(seed: int, broken: bool) -> Patient:
    """Functional dropout that is on in eval mode."""
    torch.manual_seed(seed)
    return Patient(*trained(seed, Net(after_bn=Functional(not broken))), ("after_bn",))


def batch_dependent(seed: int, broken: bool) -> Patient:
    """track_running_stats=False: batch statistics in eval mode too."""
    torch.manual_seed(seed)
    model = Net()
    if broken:
        model.bn2 = nn.BatchNorm2d(8, track_running_stats=False)
    return Patient(*trained(seed, model), ("bn2",))


def variance_below_eps(seed: int, broken: bool) -> Patient:
    """The second layer's inputs are small, and its eps is another framework's."""
    model, batches = trained(seed)
    with torch.no_grad():
        for tensor in (*model.conv2.parameters(), model.bn2.running_mean):
            tensor *= 0.01
        model.bn2.running_var *= 1e-4
    model.bn2.eps = 1e-3 if broken else 1e-9
    return Patient(model, batches, ("bn2",))


def input_differs(seed: int, broken: bool) -> Patient:
    """Evaluation on images that are not normalised."""
    model, batches = trained(seed)
    ours = [(3 * x + 1 if broken else x, y) for x, y in data(seed + 100)]
    return Patient(model, ours, (None,), {"train_loader": batches})


def drift(seed: int, broken: bool) -> Patient:
    """A backbone with requires_grad=False that is trained on new data in train mode."""
    model, _ = trained(seed)
    reference = copy.deepcopy(model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    new = [(2 * x - 1, y) for x, y in data(seed + 1)]
    if not broken:
        model.eval()
        model.train = lambda mode=True: model  # type: ignore[method-assign, assignment]
    return Patient(fit(model, new), new, ALL, {"reference": reference})


def variance_shift(seed: int, broken: bool) -> Patient:
    """Dropout right before the second of three batch norms; in the twin, after the last one."""
    torch.manual_seed(seed)
    noise = {"before_bn2" if broken else "after_bn": nn.Dropout(0.5)}
    return Patient(*trained(seed, Net(**noise)), ("bn2",))


FAULTS: dict[str, Callable[[int, bool], Patient]] = {
    function.__name__: function
    for function in (
        nonfinite, never_updated, initial_bias, momentum_low, momentum_high, polluted, stale,
        tiny_batches, batches_not_random, several_distributions, bn_wrong_mode, noise_wrong_mode,
        bn_out_of_reach, noise_out_of_reach, noise_live, batch_dependent, variance_below_eps,
        instance_norm, spectral_norm, noise_scale, output_nonfinite, input_differs, drift,
        variance_shift, unexplained_gap, mode_switch_changes_state, mixed_modes, bn_only_in_eval,
    )
}  # fmt: skip


def examine(patient: Patient) -> Any:
    return audit(patient.model, patient.loader, **patient.options)


def main(wanted: list[str]) -> None:
    for name in wanted or FAULTS:
        found, twin = (examine(FAULTS[name](0, broken)) for broken in (True, False))
        if wanted:
            print(found)
        else:
            said = ", ".join(f"{f.code} at {f.layer or 'no layer'}" for f in found.findings)
            healthy = ", ".join(f.code for f in twin.findings) or "nothing"
            print(f"{name:22} found: {said or 'nothing'}; healthy twin: {healthy}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
