"""Findings beside batch norm: instance norm, spectral norm, and what people write themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils import _pytree as pytree

from vshift.auditing.case import Case
from vshift.auditing.findings import Draft, listed
from vshift.auditing.guard import seed_everything
from vshift.auditing.noise import Source
from vshift.auditing.repairs import Repair
from vshift.auditing.samples import call, tensors_of

DRAWS = 32  # of a noise layer, to see its mean
WRONG_NORM = 1.2  # one power iteration a step lags behind moving weights by less
POWER_STEPS = 50  # of power iteration: the norm to about a percent


def instance_norm(case: Case) -> Iterator[Draft]:
    """Instance norms that normalise by averages over samples in eval mode."""
    layers = [
        name
        for name, module in case.subject.model.named_modules()
        if isinstance(module, _InstanceNorm) and module.running_mean is not None
    ]
    if layers:
        yield Draft(
            "instance_norm",
            layers[0],
            f"{listed(layers)}: normalised by each sample's own statistics in training, and by "
            "running ones in eval mode.",
            layers,
            repair=Repair("normalising each sample by itself", awake=layers),
            minor=True,
        )


def spectral_norm(case: Case) -> Iterator[Draft]:
    """Spectral norms whose vectors u, v do not give the weight's largest singular value."""
    wrong: dict[str, float] = {}
    buffers: dict[str, Tensor] = {}
    for name, weight, left, right in _spectral(case.subject.model):
        matrix, u, v = (t.detach().double() for t in (weight, left[1], right[1]))
        told = float(u @ matrix @ v)
        u, v = _singular(matrix)
        ratio = float(u @ matrix @ v) / told if told else math.inf
        if not 0 < ratio < WRONG_NORM:
            wrong[name] = ratio
            buffers |= {left[0]: u, right[0]: v}
    if wrong:
        worst = max(wrong, key=lambda n: abs(wrong[n]))
        yield Draft(
            "spectral_norm",
            worst,
            f"The largest singular value of {worst or 'the weight'} is {wrong[worst]:.3g} times "
            f"what spectral norm divides by in eval mode ({listed(list(wrong))}).",
            list(wrong),
            {"true_over_used": wrong},
            Repair("giving spectral norm the right vectors", buffers=buffers),
        )


_Vector = tuple[str, Tensor]


def _spectral(model: nn.Module) -> Iterator[tuple[str, Tensor, _Vector, _Vector]]:
    """(module, weight [out, in], (buffer's name, u [out]), (name, v [in])), old style and new."""
    for name, module in model.named_modules():
        dot = f"{name}." if name else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                weight = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
                u, v = (f"{hook.name}_{end}" for end in "uv")
                yield name, weight, (dot + u, getattr(module, u)), (dot + v, getattr(module, v))
        if isinstance(module, _SpectralNorm) and hasattr(module, "_u"):
            original = model.get_parameter(f"{name.rpartition('.')[0]}.original")
            weight = module._reshape_weight_to_matrix(original)
            owner = name.rpartition("parametrizations.")[0].removesuffix(".")
            yield owner, weight, (f"{dot}_u", module._u), (f"{dot}_v", module._v)


def _singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest singular value's vectors, by power iteration from the largest row."""
    v = matrix[int(matrix.norm(dim=1).argmax())].clone()
    u = matrix @ v
    for _ in range(POWER_STEPS):
        u = nn.functional.normalize(matrix @ v, dim=0)
        v = nn.functional.normalize(matrix.T @ u, dim=0)
    return u, v


def noise_scale(case: Case) -> Iterator[Draft]:
    """Noise modules of one's own whose mean in training is not what eval mode gives."""
    modules = dict(case.subject.model.named_modules())
    random_in_eval = {source.layer for source in case.evaluated.sources}
    own = [
        source
        for source in case.trained.sources
        if source.layer not in random_in_eval and _is_pure(modules.get(source.layer))
    ]
    scales: dict[str, float] = {}
    for source in own:
        found = _mean_scale(case, source, modules[source.layer])
        if found is not None:
            scales[source.layer] = found
    if scales:
        worst = max(scales, key=lambda n: abs(math.log(scales[n])))
        yield Draft(
            "noise_scale",
            worst,
            f"In training {worst or 'the noise'} gives on average {scales[worst]:.3g} times what "
            f"it gives in eval mode ({listed(list(scales))}).",
            list(scales),
            {"training_over_eval": scales},
            Repair("scaling its output in eval mode likewise", scale=scales),
        )


def _is_pure(module: nn.Module | None) -> bool:
    """A module that is noise and nothing else, and not PyTorch's own."""
    if module is None or type(module).__module__.startswith("torch.nn."):
        return False
    alone = not any(True for _ in module.children())
    return alone and not any(True for _ in module.parameters())


def _mean_scale(case: Case, source: Source, module: nn.Module) -> float | None:
    """The factor between the mean over draws and eval mode; None where it is 1 or there is none."""
    subject = case.subject
    given: list[Any] = []

    def enter(name: str, entered: nn.Module, inputs: Any) -> None:
        if entered is module and not given:
            given.append(inputs)

    with subject.mode("evaluated"):
        with subject.watch.watching(enter):
            call(subject.model, next(iter(case.probed.probed())).inputs)
        if not given or not given[0]:
            return None
        still = _once(module, given[0])
        module.training = True
        seed_everything(subject.seed)
        draws = [_once(module, given[0]) for _ in range(DRAWS)]
    length = float(still.square().sum())
    if not (length > 0 and math.isfinite(length)) or draws[0].shape != still.shape:
        return None
    factors = torch.stack([(draw * still).sum() for draw in draws]) / length
    factor, error = float(factors.mean()), float(factors.std()) / math.sqrt(DRAWS)
    mean = torch.stack(draws).mean(0)
    rest = float((mean - factor * still).square().sum()) / max(float(mean.square().sum()), 1e-300)
    # A module that shuffles or crops has a mean as well, but not one proportional to its input.
    clear = abs(factor - 1) > max(0.05, 4 * error) and factor > 0 and rest < 0.2
    return factor if clear else None


def _once(module: nn.Module, inputs: Any) -> Tensor:
    """Its first output; of copies, as noise may work in place."""
    return tensors_of(module(*pytree.tree_map_only(Tensor, torch.clone, inputs)))[0].double()


def output_nonfinite(case: Case) -> Iterator[Draft]:
    """Outputs that are finite in training and not in eval mode, though all statistics are."""
    if case.scores.finite or not case.probes.trained.scores.finite:
        return
    if "nonfinite" in case.blamed.values():
        return
    bad: list[str] = []

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        parts = [t for t in tensors_of(output) if t.is_floating_point()]
        if not bad and not all(t.isfinite().all() for t in parts):
            bad.append(name)

    with case.subject.mode("evaluated"), case.subject.watch.watching(leave=leave):
        for batch in case.samples.probed():
            call(case.subject.model, batch.inputs)
            if bad:
                break
    where = bad[0] if bad else ""
    yield Draft(
        "output_nonfinite",
        where,
        f"The output is finite in training mode and not in eval mode, first at "
        f"{where or 'the model'}; all running statistics are finite.",
        [where],
        severity="high",
    )
