"""Differences between configs, with what chance leaves open. All numbers from the last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vshift.report.data import Study, score_of
from vshift.report.groups import NO_NOISE, Group
from vshift.runs.reading import natural, number

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Effect:
    """A group's mean score minus another's.

    Attributes:
        low, high: 95 % confidence interval (Welch); None where a side has one run only.
        p: of no difference (Welch); None likewise.
        p_holm: p, corrected for all effects of the same table.
    """

    group: Group
    other: Group
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def real(self) -> bool:
        """More than chance explains, at 5 % over the whole table."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT

    @property
    def testable(self) -> bool:
        return self.p_holm is not None


def scores(group: Group, score: str) -> list[float]:
    found = (score_of(run, score) for run in group.runs)
    return [value for value in found if value is not None]


def against_baseline(study: Study) -> list[Effect]:
    """Every config that can be compared with the baseline: same images, same epochs."""
    base = next((group for group in study.used if group.is_baseline), None)
    if base is None:
        return []
    others = [g for g in study.used if g is not base and _comparable(g, base)]
    return _table([(group, base) for group in others], study.score)


def between_layouts(study: Study) -> list[Effect]:
    """Configs that differ in where the noise sits and not in how strong it is."""
    noisy = [g for g in study.used if g.noise.layout != NO_NOISE and g.noise.variance is not None]
    pairs = [
        (b, a)
        for i, a in enumerate(noisy)
        for b in noisy[i + 1 :]
        if a.noise.layout != b.noise.layout
        and a.noise.variance == b.noise.variance
        and _rest(a) == _rest(b)
    ]
    effects = _table(pairs, study.score)
    ordered = [
        e if e.value >= 0 else _turned(e)
        for e in sorted(effects, key=lambda e: natural(e.group.noise.strength))
    ]
    return ordered


def _turned(effect: Effect) -> Effect:
    low, high = effect.low, effect.high
    return replace(
        effect,
        group=effect.other,
        other=effect.group,
        value=-effect.value,
        low=None if high is None else -high,
        high=None if low is None else -low,
    )


def _rest(group: Group) -> dict[str, Any]:
    """A config without its noise and its name."""
    network = group.config.get("network")
    network = network if isinstance(network, dict) else {}
    rest = {k: v for k, v in group.config.items() if k not in ("name", "seeds", "network")}
    bare = {k: v for k, v in network.items() if k not in ("noise", "block")}
    return {**rest, "network": bare}


def _comparable(group: Group, base: Group) -> bool:
    return all(_budget(group)[key] == _budget(base)[key] for key in ("data", "epochs"))


def _budget(group: Group) -> dict[str, Any]:
    data = group.config.get("data")
    data = data if isinstance(data, dict) else {}
    kept = {key: value for key, value in data.items() if key != "batch_size"}
    return {"data": kept, "epochs": group.config.get("epochs")}


def _table(pairs: Sequence[tuple[Group, Group]], score: str) -> list[Effect]:
    """The pairs' differences, Holm's correction over all of them."""
    effects = [_effect(a, b, score) for a, b in pairs if scores(a, score) and scores(b, score)]
    tested = [e.p for e in effects if e.p is not None]
    corrected = iter(holm(tested))
    return [e if e.p is None else replace(e, p_holm=next(corrected)) for e in effects]


def _effect(group: Group, other: Group, score: str) -> Effect:
    a, b = scores(group, score), scores(other, score)
    value = sum(a) / len(a) - sum(b) / len(b)
    if min(len(a), len(b)) < 2 or len({*a}) + len({*b}) == 2:
        return Effect(group, other, value)
    from scipy import stats

    found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(0.95)
    return Effect(
        group, other, value, number(float(interval.low)), number(float(interval.high)),
        number(float(found.pvalue)),
    )  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """Holm (1979): the k-th smallest of m p-values × (m − k + 1), never below the one before."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    result, highest = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
        result[i] = highest
    return result
