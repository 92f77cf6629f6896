"""An eps that is not the one of training, told by the layers after it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vshift.auditing.evidence import Evidence
from vshift.auditing.findings.base import FAR, CandidateFinding, Check, list_layers, plural
from vshift.auditing.names import in_quotes
from vshift.auditing.repairs import Repair, set_eps, try_repairs
from vshift.text import join_words

# The usual ones first: of two that fit alike, the earlier is taken.
TRIED = (1e-5, 1e-3, 1e-6, 1e-4, 1e-2, 1e-8, 1e-12, 1e-15, 1e-1)
MATTERS = 0.1  # relative change of a layer's scale by another eps
SHARE_BELOW = 0.05  # of the live channels, from which eps counts as outweighing the variance
MOST_LAYERS = 16  # tried one by one, the last ones before the first that is off
VANISHES = 0.25  # of a layer's distance, or its limit, may be left

Eps = dict[str, float]


class VarianceBelowEps(Check):
    """Layers with another eps than in training.

    Train mode uses the same wrong eps, so the layer's own statistics fit: the next batch norm is
    off, whose statistics are right. So another eps is tried in the train pass, and is the cause if
    the layers after it then fit. A batch norm with none after it is judged by the loss.
    """

    code = "variance_below_eps"
    title = "eps outweighs the running variance"
    causes = (
        "an eps of another framework lost when the weights were loaded, or activations of a very "
        "small scale"
    )
    advice = "set eps to the value of training; 1e-3 and 1e-5 are both usual"

    def find(self, evidence: Evidence) -> Iterator[CandidateFinding]:
        eps, explained = _explaining(evidence)
        if eps:
            evidence.follow(explained)
            worst = next(iter(eps))
            is_far = max(evidence.distance[name] for name in explained) >= FAR
            fit = plural(explained, "fits its", "fit their")
            yield self._candidate(
                evidence,
                eps,
                worst,
                f"\nWith {_in_words(eps)}, {list_layers(explained)} after it {fit} running "
                "statistics, which are right.",
                least_gain="info" if is_far else "low",
            )
            return
        for name in _outweighed(evidence):
            yield from self._without_witness(evidence, name)

    def _candidate(
        self, evidence: Evidence, eps: Eps, worst: str, more: str, least_gain: str
    ) -> CandidateFinding:
        variance, own = evidence.running[worst].variance, evidence.layers[worst].eps
        return CandidateFinding(
            self,
            worst,
            f"{in_quotes(worst)} has an eps of {own:g} and a running variance of "
            f"{float(variance.median()):.1g}: eps decides the scale, and another eps gives another "
            f"output.{more}",
            list(eps),
            {
                "eps": {name: evidence.layers[name].eps for name in eps},
                "tried": eps,
                "share": {name: _share_below(evidence, name) for name in eps},
                "median_variance": float(variance.median()),
            },
            Repair(_in_words(eps), changes=[set_eps(eps)]),
            least_gain=least_gain,
        )

    def _without_witness(self, evidence: Evidence, name: str) -> Iterator[CandidateFinding]:
        """A layer whose eps no running statistics after it confirm: the loss decides."""
        repairs = {value: _repair({name: value}) for value in _alternatives(evidence, name)}
        for repair in repairs.values():
            moved = evidence.train_distances(repair)
            if any(
                abs(moved[other] - evidence.distance[other]) > evidence.limit[other]
                and other not in evidence.mismatched
                for other in moved
            ):
                return  # with another eps a layer that fits would not
        scores = {
            value: try_repairs(evidence.model, evidence.samples, [repair]).loss
            for value, repair in repairs.items()
        }
        known = {value: loss for value, loss in scores.items() if loss is not None}
        if known:
            best = min(known, key=lambda value: known[value])
            yield self._candidate(evidence, {name: best}, name, "", least_gain="low")
        elif scores:
            evidence.model.notes.append(
                f"eps = {evidence.layers[name].eps:g} outweighs the running variance of "
                f"{in_quotes(name)}; whether that was so in training cannot be known without "
                "labels"
            )


def _explaining(evidence: Evidence) -> tuple[Eps, list[str]]:
    """The eps by layer with which layers that are off fit, and these layers.

    From the first layer that is off to the last: what is before it decides what it gets.
    """
    found: Eps = {}
    explained: list[str] = []
    distance = evidence.distance
    off = evidence.unexplained()
    order = list(evidence.layers)
    while off:
        before = [n for n in order[: order.index(off[0])] if n in evidence.running]
        best: tuple[float, Eps, dict[str, float]] | None = None
        for trial in _trials(evidence, [n for n in before[-MOST_LAYERS:] if n not in found]):
            left = evidence.train_distances(_repair(found | trial))
            if _fits(evidence, distance, left, off, trial):
                rest = left[off[0]] / evidence.limit[off[0]]
                if best is None or rest < 0.8 * best[0]:
                    best = rest, trial, left
        if best is None:
            break
        _, trial, left = best
        found |= trial
        explained += [n for n in off if _has_vanished(evidence, distance, left, n)]
        # A layer whose own eps outweighed its variance may show only now that it is off.
        off = [
            n
            for n in evidence.judged
            if n not in (*explained, *evidence.explained_by)
            and (n in off or (n in trial and left[n] > evidence.limit[n]))
        ]
        distance = left
    return found, explained


def _trials(evidence: Evidence, layers: list[str]) -> Iterator[Eps]:
    """Every other eps that matters, in each layer alone, the nearest first, and in all at once."""
    values = {name: _alternatives(evidence, name) for name in reversed(layers)}
    for name, own in values.items():
        for value in own:
            yield {name: value}
    for value in TRIED:
        together = {name: value for name, own in values.items() if value in own}
        if len(together) > 1:
            yield together


def _fits(
    evidence: Evidence,
    before: Mapping[str, float],
    left: Mapping[str, float],
    off: list[str],
    trial: Eps,
) -> bool:
    """Whether the first layer that is off fits now, and none that fitted is off."""
    return _has_vanished(evidence, before, left, off[0]) and all(
        left[name] <= max(2 * evidence.limit[name], before[name])
        for name in left
        if name not in (*off, *trial)
    )


def _has_vanished(
    evidence: Evidence, before: Mapping[str, float], left: Mapping[str, float], name: str
) -> bool:
    return left.get(name, math.inf) <= max(evidence.limit[name], VANISHES * before[name])


def _alternatives(evidence: Evidence, name: str) -> list[float]:
    """The values of eps that change a layer's scale, each in another way."""
    variance = _alive(evidence.running[name].variance)
    different = [evidence.layers[name].eps]
    for value in TRIED:
        if variance.numel() and all(
            float(((variance + value) / (variance + other)).log().abs().median()) > 2 * MATTERS
            for other in different
        ):
            different.append(value)
    return different[1:]


def _outweighed(evidence: Evidence) -> list[str]:
    return [n for n in evidence.judged if _share_below(evidence, n) > SHARE_BELOW]


def _share_below(evidence: Evidence, name: str) -> float:
    """The share of the live channels whose running variance is below eps."""
    alive = _alive(evidence.running[name].variance)
    below = alive < evidence.layers[name].eps
    return float(below.double().mean()) if alive.numel() else 0.0


def _alive(variance: Tensor) -> Tensor:
    """Without channels that never vary."""
    return variance[variance > 1e-6 * variance.max().clamp(min=torch.finfo(variance.dtype).tiny)]


def _repair(eps: Eps) -> Repair:
    return Repair(_in_words(eps), changes=[set_eps(eps)])


def _in_words(eps: Eps) -> str:
    """`eps = 1e-05 at bn1 and bn2`, for a sentence."""
    values = dict.fromkeys(eps.values())
    return join_words(
        [
            f"eps = {value:g} at {list_layers([n for n, own in eps.items() if own == value])}"
            for value in values
        ]
    )
