"""The baseline of a table, and every row's difference to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from vshift.compare.fields import Row, active_noise, value_at
from vshift.compare.groups import Group, differing, unstudied
from vshift.compare.statistics import Difference, adjust, welch
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord
from vshift.text import escape_control, format_value, join_words, list_names, suggest

# Metrics that only the training decides; others depend on what was measured after it, too.
_OF_TRAINING = {
    f"{part}_{what}"
    for part in ("test", "validation", "train")
    for what in ("error", "accuracy", "loss")
}


def choose(groups: Sequence[Group], name: str | None, notes: list[str]) -> tuple[Group | None, str]:
    """Find the baseline's group and, for the caption, the reason if nobody named it.

    Raises:
        VShiftError: no group, or more than one, has the name, or none of its runs is done.
    """
    if name is not None:
        return _named(groups, name), ""
    clean = [group for group in groups if group.runs and _has_no_noise(group.config)]
    trainings = {frozenset(training for training, _ in group.observed) for group in clean}
    if len(groups) > 1 and len(trainings) == 1:  # of one training under several names, the most
        return max(clean, key=lambda group: len(group.runs)), ", the only config without noise"
    if len(clean) > 1:
        labels = ", ".join(group.label for group in clean)
        notes.append(
            f"no differences: several configs have no noise; choose one with --baseline: {labels}"
        )
    return None, ""


def _named(groups: Sequence[Group], name: str) -> Group:
    matches = [group for group in groups if group.label == name]
    matches = matches or [group for group in groups if group.name == name]
    matches = matches or [g for g in groups if any(run.name == name for run in g.runs)]
    labels = [group.label for group in groups]
    if len(matches) > 1:
        raise VShiftError(
            f"--baseline {name}: different configs have this name; give one of "
            + ", ".join(f"`{group.label}`" for group in matches)
        )
    if not matches:
        raise VShiftError(
            f"--baseline {name}: no config has that name; {suggest(name, labels)}"
            f"there are: {escape_control(', '.join(labels)) or 'none'}"
        )
    if not matches[0].runs:
        raise VShiftError(f"--baseline {name}: none of its runs is done, so there is no test error")
    return matches[0]


def _has_no_noise(config: Row) -> bool:
    """Whether the config has no noise, or only noise of strength 0."""
    network = config.get("network")
    if not isinstance(network, dict) or active_noise(config):
        return False
    return isinstance(network.get("noise"), dict | list | None)


def differences_to(
    baseline: Group, groups: Sequence[Group], key: str, notes: list[str]
) -> list[Difference | None]:
    """Compare every group's metric with the baseline's, p corrected over all comparisons.

    A group on other images or of another length gets none, and a note that says why. Groups of the
    same trainings are one test, and a group of the baseline's own trainings is none.
    """
    found: list[Difference | None] = []
    for group in groups:
        why = None if group is baseline else _incomparable(group, baseline)
        if why and group.runs:
            notes.append(f"no difference for {group.label}: {why}")
        is_compared = group is not baseline and why is None
        found.append(_difference(group, baseline, key) if is_compared else None)
    tests = [_observed(group, key) for group in groups]
    labels: dict[Hashable, list[str]] = {}
    for group, test, each in zip(groups, tests, found, strict=True):
        if each is not None or (group is baseline and group.numbers(key)):
            labels.setdefault(test, []).append(group.label)
    notes += [
        f"{join_words(names)} are the same training with the same seeds under {len(names)} names; "
        "they count once"
        for names in labels.values()
        if len(names) > 1
    ]
    known = [(each, test) for each, test in zip(found, tests, strict=True) if each]
    adjusted = iter(adjust([each for each, _ in known], [test for _, test in known]))
    return [each and next(adjusted) for each in found]


def _observed(group: Group, key: str) -> Hashable:
    """A key that is equal for groups whose values of a metric come from the same trainings."""
    return group.observed if group.observed and key in _OF_TRAINING else id(group)


def _difference(group: Group, baseline: Group, key: str) -> Difference | None:
    one, other = group.sample(key), baseline.sample(key)
    if one is None or other is None:
        return None
    if key in _OF_TRAINING and group.observed & baseline.observed:  # no two samples
        return Difference(one.mean - other.mean, (one, other), same_training=True)
    return welch(one, other)


def _incomparable(group: Group, baseline: Group) -> str | None:
    """The reason why scores cannot be compared, other images or epochs; None if they can."""
    for each in (group, baseline):
        mixed = [key for key in each.mixed if _is_budget(key)]
        if mixed:
            return f"runs of {each.label} differ in {', '.join(mixed[:4])}"
    one, other = _budget(group), _budget(baseline)
    unequal = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return f"not the baseline's {', '.join(unequal[:4])}" if unequal else None


def _is_budget(key: str) -> bool:
    return key == "epochs" or (key.startswith("data.") and key != "data.batch_size")


def _budget(group: Group) -> Row:
    """The images and the epochs, which must be equal for two test errors to be compared."""
    if not group.runs:
        return {}
    section = group.config.get("data")
    data = {**(section if isinstance(section, dict) else {}), "name": data_name(group.runs[0])}
    budget = {f"data.{key}": value for key, value in data.items() if key != "batch_size"}
    return {**budget, "epochs": group.config.get("epochs")}


def data_name(run: RunRecord) -> str | None:
    """The data set's name, from run.json or else from the config."""
    name = run.run.get("data")
    name = name if isinstance(name, str) else value_at(run.config, "data.name")
    return name if isinstance(name, str) else None


def unit_of(key: str) -> str:
    """The unit of a metric's difference: errors and accuracies are percent."""
    return "points" if "_error" in key or "_accuracy" in key else ""


def note_differing_keys(
    rows: list[Row],
    groups: Sequence[Group],
    reference: Group,
    studied: Sequence[str],
    notes: list[str],
) -> None:
    """Fill in the config keys in which every row differs from the reference.

    Where the table studies some keys, a note lists the other ones with their values.
    """
    for row, group in zip(rows, groups, strict=True):
        if group is reference or not group.config or not reference.config:
            continue
        found = differing(reference.config, group.config)
        row["differs_in"] = list(found)
        others = unstudied(found, studied) if studied else []
        if others:
            pairs = list_names([_pair(key, *found[key]) for key in others], noun="keys")
            notes.append(f"{group.label} differs from {reference.label} also in {pairs}")


def _pair(key: str, there: Any, here: Any) -> str:
    return f"{key} ({format_value(here)}, not {format_value(there)})"
