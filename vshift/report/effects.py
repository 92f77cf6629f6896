"""Differences between configs and what recalibration recovers, each with its test.

All scores are those of the last epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vshift.compare.groups import Group, layout_pairs, without_noise
from vshift.compare.statistics import Difference, adjust, paired, welch
from vshift.config.identity import value_differences
from vshift.report.layouts import grouped
from vshift.report.study import Study
from vshift.text import escape_control, list_names, natural


@dataclass(frozen=True)
class Effect:
    """A group's mean score minus another's, by Welch's test."""

    group: Group
    other: Group
    found: Difference

    @property
    def value(self) -> float:
        return self.found.value


@dataclass(frozen=True)
class Recovered:
    """The part of a group's score that a method recovers, by the paired t test."""

    group: Group
    method: str
    found: Difference


def against_baseline(study: Study) -> list[Effect]:
    """Every config that can be compared with the baseline, as `vshift compare` decides it."""
    base = next((group for group in study.used if group.is_baseline), None)
    return [
        Effect(group, base, group.difference)
        for group in study.used
        if base is not None and group.difference is not None
    ]


def between_layouts(study: Study) -> list[Effect]:
    """Configs that differ in where their noise sits and in nothing else, the worse one first."""
    found = []
    for one, other in layout_pairs(study.used):
        sample, other_sample = one.sample(study.score), other.sample(study.score)
        if sample is None or other_sample is None:
            continue
        if sample.mean < other_sample.mean:
            one, other, sample, other_sample = other, one, other_sample, sample
        found.append((one, other, welch(sample, other_sample)))
    found.sort(key=lambda pair: natural(pair[0].noise.strength))
    tests = [frozenset((training_of(one), training_of(other))) for one, other, _ in found]
    adjusted = adjust([difference for *_, difference in found], tests)
    return [
        Effect(one, other, each)
        for (one, other, _), each in zip(found, adjusted, strict=True)
        if each is not None
    ]


def unpaired(study: Study) -> list[str]:
    """A note for each config that only other settings keep from a comparison of layouts."""
    paired_labels = {group.label for pair in layout_pairs(study.used) for group in pair}
    notes = []
    for group in study.used:
        noise = group.noise
        if not group.has_noise or noise.variance is None or group.label in paired_labels:
            continue
        others = [
            (len(keys), natural(other.label), other.label, keys)
            for other in study.used
            if other.noise.variance == noise.variance and other.noise.layout != noise.layout
            for keys in [value_differences(*map(without_noise, (group.config, other.config)))]
        ]
        if others:
            _, _, label, keys = min(others)
            notes.append(
                f"{group.label} is compared with no other layout of its strength: {label} differs "
                f"in {list_names(list(keys), noun='keys')} too"
            )
    return notes


def training_of(group: Group) -> object:
    """The trainings that a row rests on; rows that share them are one test."""
    return group.observed or group.label


def same_trainings(groups: Iterable[Group]) -> list[list[str]]:
    """The labels of groups that are the same trainings under several names."""
    labels = grouped((training_of(group), group.label) for group in groups)
    return [names for names in labels.values() if len(names) > 1]


def recovered(study: Study) -> list[Recovered]:
    """The score that each group's first configured method recovers, not its best by test."""
    found = []
    for group in study.used:
        methods = every_method(study, group)
        first = next((run.summary.get("recalibration") for run in group.runs), None)
        found += sorted(methods, key=lambda each: each.method != escape_control(str(first)))[:1]
    # Two are one test if they share the trainings, and how these are re-estimated.
    tests = [(training_of(r.group), str(r.group.config.get("recalibration"))) for r in found]
    adjusted = adjust([each.found for each in found], tests)
    return [
        Recovered(each.group, each.method, difference)
        for each, difference in zip(found, adjusted, strict=True)
        if difference is not None
    ]


def every_method(study: Study, group: Group) -> list[Recovered]:
    """The score that each method recovers, seed by seed; p is not corrected."""
    rows = study.recalibration[study.recalibration["group"] == group.label]
    scores = {(seed, method): value for _, seed, method, value in rows.to_numpy()}
    result = []
    for method in dict.fromkeys(method for _, method in scores if method != "none"):
        seeds = [seed for seed, name in scores if name == "none" and (seed, method) in scores]
        found = paired(scores[seed, "none"] - scores[seed, method] for seed in seeds)
        result += [Recovered(group, method, found)] if found else []
    return result


def distinct(effects: Sequence[Effect]) -> int:
    """The number of different trainings: one under two names counts once."""
    return len({(training_of(e.group), e.other.observed) for e in effects})


def most_affected(study: Study, effects: Sequence[Effect]) -> Group:
    """The config with the largest loss; where there is no baseline, with the largest shift."""
    if effects:
        return max(effects, key=lambda e: e.value).group
    return max(study.used, key=lambda g: np.mean(g.numbers("shift_ratio_mean") or [0.0]))
