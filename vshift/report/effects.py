"""Differences between configs, with what chance leaves open. All numbers from the last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vshift.compare.baseline import SAME
from vshift.compare.statistics import (
    LEVEL,
    Difference,
    describe,
    holm_once,
    seeds_to_tell,
    welch,
)
from vshift.config.identity import Scope, identity
from vshift.report.data import Study, score_of
from vshift.report.groups import NO_NOISE, Group
from vshift.text import natural


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What a table's test of one of its numbers said.

    Attributes:
        p: corrected for all tests of the same table (Holm); None where there was no test.
        tests: how many tests the table holds.
    """

    p: float | None = None
    tests: int = 0

    @property
    def real(self) -> bool:
        """More than chance explains, at 5 % over the whole table."""
        return self.p is not None and self.p < LEVEL

    @property
    def testable(self) -> bool:
        return self.p is not None


@dataclass(frozen=True)
class Effect(Tested):
    """A group's mean score minus another's.

    Attributes:
        found: with Welch's interval and test, where both sides have two runs or more.
        is_same: the two sides are the same trainings, so that there is nothing to test.
    """

    group: Group
    other: Group
    found: Difference
    is_same: bool = False

    @property
    def value(self) -> float:
        return self.found.value

    @property
    def found_n(self) -> int:
        """The seeds of the side that has fewer."""
        return min(arm.n for arm in self.found.arms)

    @property
    def seeds_needed(self) -> int | None:
        """About how many seeds a side would tell it among this table's tests; None if no number."""
        return seeds_to_tell(self.found, self.tests)


def scores(group: Group, score: str) -> list[float]:
    found = (score_of(run, score) for run in group.runs)
    return [value for value in found if value is not None]


def against_baseline(study: Study) -> list[Effect]:
    """Every config that can be compared with the baseline: same images, same epochs."""
    base = next((group for group in study.used if group.is_baseline), None)
    if base is None:
        return []
    # What may be compared and which rows are one test, `vshift compare` has decided: same images,
    # same epochs, each training once.
    others = [g for g in study.used if g is not base and g.row["difference"] is not None]
    found = [(group, _difference(group, base, study.score)) for group in others]
    tests = study.comparison.tests
    return [
        Effect(g, base, d, g.row["verdict"] == SAME, p=g.row["p_adjusted"], tests=tests)
        for g, d in found
        if d is not None
    ]


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
    return [
        e if e.value >= 0 else _turned(e)
        for e in sorted(effects, key=lambda e: natural(e.group.noise.strength))
    ]


def _turned(effect: Effect) -> Effect:
    one, other = effect.found.arms
    return replace(effect, group=effect.other, other=effect.group, found=welch(other, one))


def _rest(group: Group) -> dict[str, Any]:
    """What a config trains, without its noise."""
    training = identity(group.config, Scope.TRAINING)
    network = training.get("network")
    network = network if isinstance(network, dict) else {}
    bare = {k: v for k, v in network.items() if k not in ("noise", "block")}
    return {**training, "network": bare}


def _table(pairs: Sequence[tuple[Group, Group]], score: str) -> list[Effect]:
    """The pairs' differences, with p values corrected over all of them."""
    found = [(a, b, _difference(a, b, score)) for a, b in pairs]
    known = [(a, b, difference) for a, b, difference in found if difference is not None]
    same = [(a.observed or a.label, b.observed or b.label) for a, b, _ in known]
    adjusted, tests = holm_once([difference.p_value for _, _, difference in known], same)
    return [Effect(a, b, d, p=p, tests=tests) for (a, b, d), p in zip(known, adjusted, strict=True)]


def _difference(group: Group, other: Group, score: str) -> Difference | None:
    one, two = describe(scores(group, score)), describe(scores(other, score))
    return None if one is None or two is None else welch(one, two)


def distinct(effects: Sequence[Effect]) -> int:
    """How many different trainings these are: one under two names counts once."""
    return len({(e.group.observed or e.group.label, e.other.observed) for e in effects})


def worst_of(effects: Sequence[Effect]) -> Effect:
    """The largest loss that is more than chance; where there is none, the largest."""
    return max(effects, key=lambda e: (e.real and e.value > 0, e.value))


def most_affected(study: Study, effects: Sequence[Effect]) -> Group:
    if effects:
        return worst_of(effects).group
    return max(study.used, key=lambda g: g.row["shift_ratio_mean"] or 0.0)
