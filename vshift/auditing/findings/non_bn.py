"""Findings beyond batch norm: instance norm, spectral norm, outputs that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as _SpectralNormHook

from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import CandidateFinding, Check, list_layers, plural
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair, set_mode
from vshift.auditing.samples import call, tensors_of
from vshift.text import format_significant

WRONG_NORM = 1.2  # one power iteration per step lags behind moving weights by less
POWER_STEPS = 50  # of power iteration: the norm to about a percent


class InstanceNorm(Check):
    """Instance norms that normalise by averages over samples in eval mode."""

    code = "instance_norm"
    title = "instance norm uses running statistics in eval mode"
    causes = (
        "track_running_stats=True: training normalises each sample by itself, eval mode by "
        "averages over all"
    )
    advice = "set track_running_stats=False; the weights stay as they are"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layers = [
            name
            for name, module in evidence.model.registered.items()
            if isinstance(module, _InstanceNorm) and module.running_mean is not None
        ]
        if layers:
            yield CandidateFinding(
                self,
                layers[0],
                f"{list_layers(layers)} {plural(layers, 'normalises', 'normalise')} by each "
                "sample's own statistics in training, and by running ones in eval mode.",
                layers,
                repair=Repair(
                    "normalising each sample by itself", changes=[set_mode(layers, True)]
                ),
                least_gain="low",
            )


class SpectralNorm(Check):
    """Spectral norms whose vectors u, v do not give the weight's largest singular value."""

    code = "spectral_norm"
    title = "spectral norm divides by a wrong norm in eval mode"
    causes = (
        "buffers of spectral norm lost in a checkpoint or an average, or weights changed after "
        "them; in training mode every forward repairs them a little"
    )
    advice = "run some batches in train mode before saving, or load the buffers as well"
    remedy = "`--fix OUT.safetensors` writes right ones"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        ratios: dict[str, float] = {}
        buffers: dict[str, Tensor] = {}
        model = evidence.model.module
        for name, weight, left, right in _spectral_norms(model):
            tensors = (weight, model.get_buffer(left), model.get_buffer(right))
            matrix, u, v = (t.detach().double() for t in tensors)
            used = float(u @ matrix @ v)
            # The vectors of the largest singular value, by power iteration from the largest row.
            v = matrix[int(matrix.norm(dim=1).argmax())].clone()
            for _ in range(POWER_STEPS):
                u = nn.functional.normalize(matrix @ v, dim=0)
                v = nn.functional.normalize(matrix.T @ u, dim=0)
            ratio = float(u @ matrix @ v) / used if used else math.inf
            if not 0 < ratio < WRONG_NORM:
                ratios[name] = ratio
                buffers |= {left: u, right: v}
        if ratios:
            worst = max(ratios, key=lambda n: abs(ratios[n]))
            yield CandidateFinding(
                self,
                worst,
                f"spectral norm divides {list_layers(list(ratios))} by a wrong norm in eval "
                "mode.\n"
                f"The largest singular value of {in_quotes(worst)} is "
                f"{format_significant(ratios[worst], 3)} times that norm.",
                list(ratios),
                {"true_over_used": ratios},
                Repair("giving spectral norm the right vectors", buffers=buffers),
            )


def _spectral_norms(model: nn.Module) -> Iterator[tuple[str, Tensor, str, str]]:
    """(module, weight [out, in], names of the buffers u [out] and v [in]), both styles."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _SpectralNormHook):
                weight = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
                yield name, weight, f"{prefix}{hook.name}_u", f"{prefix}{hook.name}_v"
        if isinstance(module, _SpectralNorm) and hasattr(module, "_u"):
            original = model.get_parameter(f"{name.rpartition('.')[0]}.original")
            weight = module._reshape_weight_to_matrix(original)
            owner = name.rpartition("parametrizations.")[0].removesuffix(".")
            yield owner, weight, f"{prefix}_u", f"{prefix}_v"


class OutputNonFinite(Check):
    """Outputs that are finite in training and not in eval mode, though all statistics are."""

    code = "output_nonfinite"
    title = "outputs are inf or NaN in eval mode only"
    causes = (
        "a custom running scale that was never updated or is zero, or an overflow in low precision "
        "after statistics that differ from training"
    )
    advice = "look at what the named module does differently in eval mode"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        if evidence.eval_scores.finite or not evidence.train_pass.scores.finite:
            return
        if "nonfinite" in evidence.explained_by.values():
            return
        names: list[str] = []

        def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            parts = [t for t in tensors_of(output) if t.is_floating_point()]
            if not all(t.isfinite().all() for t in parts):
                names.append(name)

        with evidence.model.mode("eval"), evidence.model.tracker.tracking(leave=leave):
            for batch in evidence.samples.shuffled():
                call(evidence.model.module, batch.inputs)
                if names:
                    break
        layer = names[0] if names else ""
        yield CandidateFinding(
            self,
            layer,
            f"the output is inf or NaN in eval mode only, first at {in_quotes(layer)}.\n"
            "All running statistics are finite.",
            [layer],
            severity="high",
        )
