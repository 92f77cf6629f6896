"""Differences between configs, with what chance leaves open. All numbers from the last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vshift.compare.groups import layout_pairs
from vshift.compare.statistics import Difference, adjust, describe, seeds_to_tell, welch
from vshift.report.data import Study, score_of
from vshift.report.groups import Group
from vshift.text import natural


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A difference, tested among all of its table."""

    found: Difference

    @property
    def p(self) -> float | None:
        return self.found.p_adjusted

    @property
    def tests(self) -> int:
        return self.found.tests

    @property
    def real(self) -> bool:
        return self.found.is_significant

    @property
    def testable(self) -> bool:
        return self.found.is_tested

    @property
    def value(self) -> float:
        return self.found.value

    @property
    def found_n(self) -> int:
        return self.found.n

    @property
    def seeds_needed(self) -> int | None:
        return seeds_to_tell(self.found)


@dataclass(frozen=True, kw_only=True)
class Effect(Tested):
    """A group's mean score minus another's, with Welch's interval and test."""

    group: Group
    other: Group

    @property
    def is_same(self) -> bool:
        return self.found.same_training


def scores(group: Group, score: str) -> list[float]:
    found = (score_of(run, score) for run in group.runs)
    return [value for value in found if value is not None]


def against_baseline(study: Study) -> list[Effect]:
    """Every config that can be compared with the baseline: same images, same epochs."""
    base = next((group for group in study.used if group.is_baseline), None)
    if base is None:
        return []
    # What may be compared and which rows are one test, `vshift compare` has decided.
    found = zip(study.groups, study.comparison.differences, strict=True)
    return [
        Effect(group=group, other=base, found=difference)
        for group, difference in found
        if difference is not None
    ]


def between_layouts(study: Study) -> list[Effect]:
    """Configs that differ in where the noise sits and not in how strong it is."""
    groups = {group.name: group for group in study.used}
    pairs = [
        (groups[one.label], groups[other.label])
        for one, other in layout_pairs([g for g in study.comparison.groups if g.runs])
    ]
    known = [(a, b, d) for a, b in pairs if (d := _difference(a, b, study.score)) is not None]
    same = [(a.observed or a.label, b.observed or b.label) for a, b, _ in known]
    adjusted = adjust([difference for _, _, difference in known], same)
    effects = [
        Effect(group=a, other=b, found=found)
        for (a, b, _), found in zip(known, adjusted, strict=True)
    ]
    effects.sort(key=lambda e: natural(e.group.noise.strength))
    return [
        e if e.value >= 0 else Effect(group=e.other, other=e.group, found=e.found.turned())
        for e in effects
    ]


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
