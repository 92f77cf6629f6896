"""The baseline of a table, and every row's difference to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from vshift.compare.fields import value_at
from vshift.compare.groups import Group, differing, unstudied
from vshift.compare.statistics import Difference, adjust, welch
from vshift.config.identity import Scope, identity, short_references
from vshift.errors import VShiftError
from vshift.runs.files import Row
from vshift.runs.read import RunRecord
from vshift.text import escape_control, format_value, join_words, list_names, suggest

LABELS = 8  # of configs that a note names
# Metrics that only the training decides; others depend on what was measured after it, too.
_OF_TRAINING = {
    f"{part}_{what}"
    for part in ("test", "validation", "train")
    for what in ("error", "accuracy", "loss", "nll", "brier", "ece")
}


def choose(groups: Sequence[Group], name: str | None, notes: list[str]) -> tuple[Group | None, str]:
    """Find the baseline's group and, for the caption, the reason if nobody named it.

    Raises:
        VShiftError: no group, or more than one, has the name, or none of its runs is done.
    """
    if name is None:
        clean = [group for group in groups if group.runs and _has_no_noise(group)]
        trainings = {frozenset(training for training, _ in group.observed) for group in clean}
        if len(groups) > 1 and len(trainings) == 1:  # of one training under several names, the most
            return max(clean, key=lambda group: len(group.runs)), ", the only config without noise"
        return None, ""
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
    return matches[0], ""


def ask_for_baseline(groups: Sequence[Group]) -> list[str]:
    """A note on how to name a baseline, if there is more than one config and none is chosen."""
    done = [group for group in groups if group.runs]
    clean = [group for group in done if _has_no_noise(group)]
    if len(done) < 2:
        return []
    why = "several configs have no noise" if clean else "no finished config is without noise"
    names = list_names([group.label for group in clean or done], LABELS)
    return [f"no differences: {why}; choose a baseline with --baseline: {names}"]


def _has_no_noise(group: Group) -> bool:
    """Whether the config is known to have no noise, or only noise of strength 0."""
    network = group.config.get("network")
    if not isinstance(network, dict) or group.has_noise:
        return False
    return isinstance(network.get("noise"), dict | list | None)


def differences_to(
    baseline: Group, groups: Sequence[Group], key: str, notes: list[str]
) -> list[Difference | None]:
    """Compare every group's metric with the baseline's, p corrected over all comparisons.

    A group on other images or of another length gets none, and a note that says why. Groups of the
    same trainings are one test, and a group of the baseline's own trainings is none.
    """
    is_of_training = key in _OF_TRAINING
    # Equal for groups whose values come from the same trainings.
    tests: list[Hashable] = [
        group.observed if is_of_training and group.observed else id(group) for group in groups
    ]
    found: list[Difference | None] = []
    labels: dict[Hashable, list[str]] = {}
    reference = baseline.sample(key)
    for group, test in zip(groups, tests, strict=True):
        why = _incomparable(group, baseline) if group.runs and group is not baseline else None
        if why:
            notes.append(f"no difference for {group.label}: {why}")
        sample, difference = group.sample(key), None
        if sample and reference and not why and group is not baseline:
            if is_of_training and group.observed & baseline.observed:  # no two samples
                value = sample.mean - reference.mean
                difference = Difference(value, (sample, reference), same_training=True)
            else:
                difference = welch(sample, reference)
        found.append(difference)
        if difference or (group is baseline and sample):
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


def _incomparable(group: Group, baseline: Group) -> str | None:
    """Why the scores of two groups cannot be compared: other images or epochs; None if they can."""
    budgets: list[Row] = []
    for each in (group, baseline):
        mixed = [key for key in each.mixed if key == "epochs" or _is_of_images(key)]
        if mixed:
            return f"runs of {each.label} differ in {', '.join(mixed[:4])}"
        data = identity(each.config, Scope.TRAINING).get("data")
        images = {**(data if isinstance(data, dict) else {}), "name": data_name(each.runs[0])}
        budget = {f"data.{key}": value for key, value in images.items()}
        budget = {key: value for key, value in budget.items() if _is_of_images(key)}
        budgets.append({**budget, "epochs": each.config.get("epochs")})
    one, other = budgets
    unequal = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return f"not the baseline's {', '.join(unequal[:4])}" if unequal else None


def _is_of_images(key: str) -> bool:
    """Whether a dotted key says which images are used, and not how they are trained on."""
    return key.startswith("data.") and key.split(".")[1] not in ("batch_size", "augment")


def data_name(run: RunRecord) -> str | None:
    """The data set's name, from run.json or else from the config; of a file without its folder."""
    name = run.run.get("data")
    name = name if isinstance(name, str) else value_at(run.config, "data.name")
    return str(short_references(name, "name")) if isinstance(name, str) else None


def unit_of(key: str) -> str:
    """The unit of a metric's difference: errors, accuracies and ECE are percent."""
    return "points" if any(word in key for word in ("_error", "_accuracy", "_ece")) else ""


def note_differing_keys(
    rows: list[Row],
    groups: Sequence[Group],
    reference: Group,
    studied: Sequence[str],
    notes: list[str],
) -> None:
    """Fill in the config keys in which every row differs from the reference.

    Where the table studies some keys, a note lists the other ones with their values; elsewhere it
    says where a difference is one between networks.
    """
    for row, group in zip(rows, groups, strict=True):
        if group is reference or not group.config or not reference.config:
            continue
        found = differing(reference.config, group.config)
        row["differs_in"] = list(found)
        is_compared = row["difference"] is not None
        others = [key for key in ("network.name",) if key in found and is_compared]
        others = unstudied(found, studied) if studied else others
        if others:
            pairs = [
                f"{key} ({format_value(here)}, not {format_value(there)})"
                for key, (there, here) in ((key, found[key]) for key in others)
            ]
            keys = list_names(pairs, noun="keys")
            notes.append(f"{group.label} differs from {reference.label} also in {keys}")
