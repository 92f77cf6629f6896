"""Noise that runs in eval mode, changes the mean, or shifts a variance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import (
    RECALIBRATE,
    CandidateFinding,
    Check,
    list_layers,
    plural,
)
from vshift.auditing.guard import seed_everything
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair, eval_hidden, scale_outputs, set_mode, silence
from vshift.auditing.samples import call, tensors_of
from vshift.auditing.severity import format_change, least_severity, severity_of_change
from vshift.auditing.trace import SILENCEABLE, NoiseSource
from vshift.text import format_estimate, format_significant, list_names, pluralize

DRAWS = 32  # of a noise layer, to see its mean


class _NoiseInEval(Check):
    """Noise that runs in eval mode; every source belongs to one of the three checks."""

    def sources(self, evidence: Evidence) -> list[NoiseSource]:
        """The check's sources of noise that `allow_noise` does not name."""
        found = []
        for source in evidence.eval_trace.sources:
            layer, code = source.layer, "noise_live"
            if layer and layer in evidence.still_training:
                code = "noise_wrong_mode"
            elif layer in evidence.model.tracker.hidden:
                code = "noise_out_of_reach"
            is_allowed = any(
                fnmatch(layer, pattern) or layer.startswith(f"{pattern}.")
                for pattern in evidence.allowed_noise
            )
            if code == self.code and not is_allowed:
                found.append(source)
        return found

    def candidate(
        self, evidence: Evidence, sources: Sequence[NoiseSource], what: str, repair: Repair | None
    ) -> CandidateFinding:
        change = evidence.tests.repeat_change
        message = (
            f"{list_names([source.with_line for source in sources])} "
            f"{'is' if len(sources) == 1 else 'are'} {what}.\n"
            f"Two passes over the same batch differ by {_change_of_output(change)}."
        )
        # In both modes alike: the noise hides the shift of variance that it may cause.
        reached = [
            n for n in evidence.judged if any(s in sources for s in evidence.noise_reaching(n))
        ]
        if reached:
            message += (
                f"\nIt reaches {list_layers(reached)} in both modes alike: audit again once it "
                "follows the mode, to see whether it shifts the variance there."
            )
        return CandidateFinding(
            self,
            sources[0].layer,
            message,
            [source.layer for source in sources],
            {
                "functions": [source.function for source in sources],
                "places": [source.line for source in sources],
                "repeat_change": change,
            },
            repair,
            severity=severity_of_change(change),
            least=least_severity(change),
        )


class NoiseWrongMode(_NoiseInEval):
    """Registered noise modules in training mode after eval()."""

    code = "noise_wrong_mode"
    title = "a noise layer stays in training mode after eval()"
    causes = "a custom train() or eval() that does not pass the mode on"
    advice = "call super().train(mode); name it in `allow_noise` if it is Monte Carlo dropout"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        if sources := self.sources(evidence):
            what = "still in training mode after model.eval()"
            change = set_mode([s.layer for s in sources], False)
            repair = Repair("putting it into eval mode", changes=[change])
            yield self.candidate(evidence, sources, what, repair)


class NoiseOutOfReach(_NoiseInEval):
    """Noise modules that are no children of the model."""

    code = "noise_out_of_reach"
    title = "a noise layer is out of eval()'s reach"
    causes = (
        "a dropout kept in a plain list or made inside forward(), where it is always in training "
        "mode"
    )
    advice = "make it in __init__ and register it, or pass training=self.training"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        if sources := self.sources(evidence):
            what = "out of eval()'s reach, as it is not among the model's modules"
            repair = Repair("switching it off", changes=[eval_hidden({}), silence])
            yield self.candidate(evidence, sources, what, repair)


class NoiseLive(_NoiseInEval):
    """Noise that a forward calls in eval mode, or that shows only in outputs that differ."""

    code = "noise_live"
    title = "noise is live in eval mode"
    causes = (
        "F.dropout without training=self.training, attention with a fixed dropout_p, a DropPath "
        "that ignores the mode"
    )
    advice = "make it follow self.training; name it in `allow_noise` if it is wanted"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        layer, change = evidence.tests.repeat_at, evidence.tests.repeat_change
        if sources := self.sources(evidence):
            can_be_silenced = all(source.function in SILENCEABLE for source in sources)
            repair = Repair("switching it off", changes=[silence]) if can_be_silenced else None
            yield self.candidate(evidence, sources, "random in eval mode", repair)
        elif not evidence.eval_trace.sources and layer is not None:
            yield CandidateFinding(
                self,
                layer,
                f"two passes over the same batch in eval mode differ by "
                f"{_change_of_output(change)}, first at {in_quotes(layer)}.\n"
                "No random operation of PyTorch ran: the randomness is Python's or NumPy's, or "
                "state is kept between calls.",
                [layer],
                {"functions": [], "repeat_change": change},
                severity=severity_of_change(change),
            )


def _change_of_output(change: float) -> str:
    return f"{format_change(change)} of the output" if change < 10 else format_change(change)


class NoiseScale(Check):
    """Custom noise modules whose mean in training is not what they give in eval mode."""

    code = "noise_scale"
    title = "noise changes the mean"
    causes = (
        "a custom dropout that neither divides by the keep rate in training nor multiplies by it "
        "in eval mode"
    )
    advice = "divide by 1 − rate in training, or use nn.Dropout"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        modules = evidence.model.registered
        random_in_eval = {source.layer for source in evidence.eval_trace.sources}
        scales = {}
        for source in evidence.train_trace.sources:
            module = modules.get(source.layer)
            if source.layer in random_in_eval or module is None:
                continue
            # Noise and nothing else, and not PyTorch's own.
            is_leaf = not [*module.children(), *module.parameters()]
            if is_leaf and not type(module).__module__.startswith("torch.nn."):
                scale = _mean_scale(evidence, module)
                if scale is not None:
                    scales[source.layer] = scale
        if scales:
            worst = max(scales, key=lambda n: abs(math.log(scales[n])))
            yield CandidateFinding(
                self,
                worst,
                f"{in_quotes(worst)} gives on average "
                f"{format_significant(scales[worst], 3)} times as much in training as in eval mode."
                + f"\nNoise that changes the mean: {list_layers(list(scales))}."
                * (len(scales) > 1),
                list(scales),
                {"training_over_eval": scales},
                Repair("scaling its output in eval mode likewise", changes=[scale_outputs(scales)]),
            )


def _mean_scale(evidence: Evidence, module: nn.Module) -> float | None:
    """The mean over draws over eval mode's output; None if it is 1 or there is no such factor."""
    model = evidence.model
    inputs: list[Any] = []

    def enter(name: str, entered: nn.Module, given: Any) -> None:
        if entered is module and not inputs:
            inputs.append(given)

    with model.mode("eval"):
        with model.tracker.tracking(enter):
            call(model.module, evidence.train_samples.first().inputs)
        if not inputs or not inputs[0]:
            return None
        still = _output_of(module, inputs[0])
        module.training = True
        seed_everything(model.seed)
        draws = [_output_of(module, inputs[0]) for _ in range(DRAWS)]
        nothing = pytree.tree_map_only(Tensor, torch.zeros_like, inputs[0])
        adds = not torch.equal(*(_output_of(module, nothing) for _ in range(2)))
    length = float(still.square().sum())
    if not (length > 0 and math.isfinite(length)) or draws[0].shape != still.shape:
        return None
    factors = torch.stack([(draw * still).sum() for draw in draws]) / length
    factor, error = float(factors.mean()), float(factors.std()) / math.sqrt(DRAWS)
    mean = torch.stack(draws).mean(0)
    rest = float((mean - factor * still).square().sum()) / max(float(mean.square().sum()), 1e-300)
    sampling = (
        float(torch.stack(draws).var(0).sum()) / DRAWS / max(float(mean.square().sum()), 1e-300)
    )
    # A module that shuffles or crops has a mean as well, but not one proportional to its input; and
    # noise that is there without an input, as dither before a logarithm, is added.
    is_proportional = rest < min(0.2, 2 * sampling) and not adds
    is_clear = abs(factor - 1) > max(0.05, 4 * error) and factor > 0 and is_proportional
    return factor if is_clear else None


def _output_of(module: nn.Module, inputs: Any) -> Tensor:
    """The first output, from copies of the inputs, as noise may work in place."""
    return tensors_of(module(*pytree.tree_map_only(Tensor, torch.clone, inputs)))[0].double()


class VarianceShift(Check):
    """Noise changes the variance of a layer's input, and eval mode has none of it."""

    code = "variance_shift"
    title = "noise shifts the variance that a batch norm meets"
    causes = "dropout or stochastic depth before a batch norm"
    advice = "move the noise after the last batch norm, lower its rate, or use uniform noise"
    remedy = RECALIBRATE

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        shifted = {n: r for n, r in evidence.shifted.items() if n not in evidence.re_estimated}
        if not shifted:
            return
        worst = max(shifted, key=lambda n: abs(math.log(shifted[n].value)))
        noise = [str(source) for source in evidence.noise_reaching(worst)]
        all_noise = [str(source) for n in shifted for source in evidence.noise_reaching(n)]
        local, inherited = shifted[worst], evidence.inherited_ratio(worst).value
        inheriting = evidence.inheriting
        same = sum((ratio.value > 1) == (local.value > 1) for ratio in shifted.values()) - 1
        more = ""
        for count, which, how in (
            (same, "further", "likewise"), (len(shifted) - 1 - same, "other", "the other way")
        ):  # fmt: skip
            if count:
                more += f"\n{pluralize(count, f'{which} layer is', f'{which} layers are')}"
                more += f" shifted {how}."
        if inheriting:
            verb = plural(inheriting, "inherits", "inherit")
            more += f"\n{list_layers(inheriting)} only {verb} a shift."
        yield CandidateFinding(
            self,
            worst,
            f"{list_names([source.with_line for source in evidence.noise_reaching(worst)])} in "
            f"front of {in_quotes(worst)} makes the variance in training "
            f"{format_estimate(local.value, local.error)} times that without noise.\n"
            f"The factor inherited from earlier layers is {inherited:.2f}.{more}",
            list(shifted),
            {
                "noise": noise,
                "all_noise": list(dict.fromkeys(all_noise)),
                "local_ratio": {n: r.value for n, r in shifted.items()},
                "local_ratio_se": {n: r.error for n, r in shifted.items()},
                "inherited_ratio": {n: evidence.inherited_ratio(n).value for n in shifted},
                "inherits": inheriting,
            },
            Repair(
                "re-estimating all batch norms with noise off",
                statistics={
                    name: moments
                    for name in evidence.judged
                    if (moments := evidence.noise_off_pass.average(name)) is not None
                },
            ),
        )
