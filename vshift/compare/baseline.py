"""Which row differences are taken to, and what each row's difference to it is worth."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from typing import Any

from vshift.compare.fields import Row, heard
from vshift.compare.groups import Group, differing, unstudied
from vshift.compare.statistics import (
    Difference,
    describe,
    holm_once,
    seeds_to_tell,
    verdict,
    welch,
)
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord
from vshift.text import did_you_mean, escape_control, format_value, join_words

_LISTED = 4  # keys in a note
SAME = "the baseline's own training, under another name"  # a verdict


def choose(groups: Sequence[Group], name: str | None, notes: list[str]) -> tuple[Group | None, str]:
    """The baseline's group and, for the caption, why it is the one.

    Raises:
        VShiftError: no group, or more than one, is called as `name` says, or none of its runs is
            done.
    """
    if name is not None:
        return _named(groups, name), ""
    clean = [group for group in groups if group.used and _no_noise(group.config)]
    trainings = {frozenset(training for training, _ in group.observed) for group in clean}
    if len(groups) > 1 and len(trainings) == 1:  # of one training under several names, the most
        return max(clean, key=lambda group: len(group.used)), ", the only config without noise"
    if len(clean) > 1:
        labels = ", ".join(group.label for group in clean)
        notes.append(
            f"no differences: several configs have no noise; choose one with --baseline: {labels}"
        )
    return None, ""


def _named(groups: Sequence[Group], name: str) -> Group:
    matches = [group for group in groups if group.label == name]
    matches = matches or [group for group in groups if group.name == name]
    matches = matches or [g for g in groups if any(run.name == name for run in g.used)]
    labels = [group.label for group in groups]
    if len(matches) > 1:
        raise VShiftError(
            f"--baseline {name}: different configs have this name; give one of "
            + ", ".join(f"`{group.label}`" for group in matches)
        )
    if not matches:
        hint = did_you_mean(name, labels)
        raise VShiftError(
            f"--baseline {name}: no config is called so; {hint + ' ' if hint else ''}"
            f"there are: {escape_control(', '.join(labels)) or 'none'}"
        )
    if not matches[0].used:
        raise VShiftError(f"--baseline {name}: none of its runs is done, so there is no test error")
    return matches[0]


def _no_noise(config: Row) -> bool:
    """Whether the config has no noise, or only noise of strength 0."""
    network = config.get("network")
    if not isinstance(network, dict):
        return False
    noise = network.get("noise")
    return isinstance(noise, dict | list | None) and not heard(noise)


def subtract(
    rows: list[Row], groups: Sequence[Group], baseline: Group, key: str, notes: list[str]
) -> int:
    """Fill in every row's difference to the baseline of a metric, with interval, p and verdict.

    A row on other images or of another length gets none, and a note that says why. Rows of the
    same trainings are one test, and a row of the baseline's own trainings is none.

    Returns:
        How many tests Holm's correction is over.
    """
    budget = _budget(baseline)
    found: list[Difference | None] = []
    for row, group in zip(rows, groups, strict=True):
        others = _unequal(_budget(group), budget)
        mixed = _mixed_budget(group) or _mixed_budget(baseline)
        if group is baseline:
            row["difference"] = 0.0 if group.numbers(key) else None
        elif mixed and group.used:
            row_of = group if _mixed_budget(group) else baseline
            what = ", ".join(mixed[:_LISTED])
            notes.append(
                f"no difference for {group.label}: runs of {row_of.label} differ in {what}"
            )
        elif others and group.used:
            what = ", ".join(others[:_LISTED])
            notes.append(f"no difference for {group.label}: not the baseline's {what}")
        is_other = group is not baseline and not others and not mixed
        found.append(_difference(group, baseline, key) if is_other else None)
    same = [observed_of(group, key) for group in groups]
    p_values = [each.p_value if each else None for each in found]
    adjusted, tests = holm_once(p_values, same)
    for row, group, difference, p_value in zip(rows, groups, found, adjusted, strict=True):
        if difference is not None:
            is_same = _overlap(group, baseline, key)
            row |= {
                "difference": difference.value,
                "difference_se": difference.standard_error,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "p_value": difference.p_value,
                "p_adjusted": p_value,
                "seeds_needed": seeds_to_tell(difference, tests),
                "verdict": SAME if is_same else verdict(difference, p_value, tests, unit_of(key)),
            }
    compared = [row["difference"] is not None for row in rows]
    notes += _the_same(list(compress(groups, compared)), list(compress(same, compared)))
    return tests


# Metrics that only the training decides; others depend on what was measured after it, too.
_OF_TRAINING = {
    f"{part}_{what}"
    for part in ("test", "validation", "train")
    for what in ("error", "accuracy", "loss")
}


def observed_of(group: Group, key: str) -> Hashable:
    """What two groups share if a metric of theirs is of the same trainings, else its own."""
    return group.observed if group.observed and key in _OF_TRAINING else id(group)


def _overlap(group: Group, baseline: Group, key: str) -> bool:
    """Whether some of the one's trainings are the other's: no two samples, so nothing to test."""
    return key in _OF_TRAINING and bool(group.observed & baseline.observed)


def _the_same(groups: Sequence[Group], same: Sequence[Hashable]) -> list[str]:
    """A note for each training that has several rows."""
    labels: dict[Hashable, list[str]] = {}
    for group, test in zip(groups, same, strict=True):
        labels.setdefault(test, []).append(group.label)
    return [
        f"{join_words(names)} are the same training with the same seeds under {len(names)} names; "
        "they count once"
        for names in labels.values()
        if len(names) > 1
    ]


def _difference(group: Group, baseline: Group, key: str) -> Difference | None:
    one, other = describe(group.numbers(key)), describe(baseline.numbers(key))
    if one is None or other is None:
        return None
    if _overlap(group, baseline, key):
        return Difference(one.mean - other.mean, None, None, None, None, None, (one, other))
    return welch(one, other)


def unit_of(key: str) -> str:
    """What a difference of a metric is in: errors and accuracies are percent."""
    return "points" if "_error" in key or "_accuracy" in key else ""


def flag_others(
    rows: list[Row],
    groups: Sequence[Group],
    reference: Group,
    studied: Sequence[str],
    notes: list[str],
) -> None:
    """Say of every row in which config keys it differs from the reference; a note with the values
    for those that the table does not study, if it says what it studies."""
    for row, group in zip(rows, groups, strict=True):
        if group is reference or not group.config or not reference.config:
            continue
        found = differing(reference.config, group.config)
        row["differs_in"] = list(found)
        others = unstudied(found, studied) if studied else []
        if others:
            notes.append(
                f"{group.label} differs from {reference.label} also in {_pairs(found, others)}"
            )


def _pairs(found: dict[str, tuple[Any, Any]], keys: Sequence[str]) -> str:
    text = ", ".join(
        f"{key} ({format_value(found[key][1])}, not {format_value(found[key][0])})"
        for key in keys[:_LISTED]
    )
    more = len(keys) - _LISTED
    return f"{text} and {more} more keys" if more > 0 else text


def _budget(group: Group) -> Row:
    """What must be the same for two test errors to be compared: the images and the epochs."""
    if not group.used:
        return {}
    section = group.config.get("data")
    data = {**(section if isinstance(section, dict) else {}), "name": data_name(group.used[0])}
    budget = {f"data.{key}": value for key, value in data.items() if key != "batch_size"}
    return {**budget, "epochs": group.config.get("epochs")}


def _mixed_budget(group: Group) -> list[str]:
    """The keys of the budget in which a pooled row's own runs differ."""
    return [
        key
        for key in group.mixed
        if key == "epochs" or (key.startswith("data.") and key != "data.batch_size")
    ]


def _unequal(one: Row, other: Row) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def data_name(run: RunRecord) -> str | None:
    """The data set as run.json says it, else as the config does."""
    name = run.run.get("data")
    if not isinstance(name, str):
        section = run.config.get("data")
        name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None
