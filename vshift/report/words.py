"""What the page says about the data and about runs that do not count."""

from __future__ import annotations

from pathlib import PurePath

from markupsafe import Markup

from vshift.report.data import Study
from vshift.report.groups import Group
from vshift.report.prose import bold, joined, say
from vshift.text import escape_control

_TITLES = {
    "shapes": "shapes (drawn by vshift)",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def caption(study: Study) -> str:
    """What the numbers of the table of configs are."""
    text = "Scores of the last epoch: mean ± sample standard deviation over n seeds."
    base = next((group.label for group in study.used if group.is_baseline), None)
    if base is None:
        text += " No differences, as there is no baseline."
    else:
        text += f" Differences to {base}, with Welch’s 95 % interval and test."
    if not study.recalibration.empty:
        text += " Given back by recalibration, with the paired t interval and test over seeds."
    if base is not None or not study.recalibration.empty:
        text += (
            " Each p is corrected for all rows of its column (Holm); “~9 seeds”: about so many a "
            "config would tell."
        )
    return (
        f"{text} Shift max is the mean over "
        "seeds of each run’s largest ratio, at the layer where that is most often."
    )


def layer_note(study: Study) -> str:
    """How axes shorten layers' names, by an example; empty where they do not."""
    for name, short in study.layers.items():
        if short != escape_control(name):
            return f"On axes, layers have short names: {short} is {escape_control(name)}."
    return ""


def same_note(study: Study) -> str:
    """Which configs' marks lie on each other, as they are the same trainings."""
    labels: dict[frozenset[tuple[str, int]], list[str]] = {}
    for group in study.used:
        labels.setdefault(group.observed, []).append(group.label)
    return " ".join(
        f"{joined(names)} are the same trainings: their marks lie on each other."
        for observed, names in labels.items()
        if observed and len(names) > 1
    )


def data_names(study: Study) -> list[str]:
    """The data sets of all configs, as they may be called in a paper."""
    found = (data_name(group) for group in study.groups if group.config)
    return list(dict.fromkeys(name for name in found if name))


def data_name(group: Group) -> str:
    """A data set by its own name; images from a folder by the folder's, and as such."""
    section = group.config.get("data")
    section = section if isinstance(section, dict) else {}
    name = section.get("name")
    if name == "imagefolder":
        folder = escape_control(PurePath(str(section.get("root", ""))).name)
        return f"images in the folder “{folder}”, no published data set"
    return _TITLES.get(str(name), escape_control(str(name))) if isinstance(name, str) else ""


def data_sentences(study: Study) -> list[Markup]:
    """How much of which data, and what its numbers must not be set beside."""
    kinds, limits = set(), set()
    for group in study.groups:
        section = group.config.get("data")
        if isinstance(section, dict):
            kinds.add(str(section.get("name")))
            limits.add((_limit(section, "train"), _limit(section, "test")))
    names = data_names(study)
    text = [say("Data: {}.", joined(map(bold, names)))] if names else []
    text += [
        say("Limited to {}.", joined(part for part in parts if part))
        for parts in sorted(limits)
        if any(parts)
    ]
    if "imagefolder" in kinds:
        text.append(
            Markup(
                "Whatever the images in a folder were made from, re-compressed or resized ones "
                "give other errors: do not set these numbers beside published ones for CIFAR-10 or "
                "any other set."
            )
        )
    if kinds & {"cifar10", "cifar100"} and any(any(parts) for parts in limits):
        text.append(Markup("A part of a data set: not comparable with published numbers."))
    if len(names) > 1:
        text.append(Markup("Configs on different data are not compared with each other."))
    return text


def _limit(section: dict[str, object], part: str) -> str:
    key = part if section.get("name") == "shapes" else f"{part}_limit"
    count = section.get(key)
    kind = "training" if part == "train" else "test"
    return f"{count:,} {kind} images" if isinstance(count, int) else ""


_STATUS = {
    "running": "not finished (running, or killed)",
    "interrupted": "interrupted",
    "failed": "failed",
    "diverged": "diverged (the loss became NaN or infinite)",
    "damaged": "damaged",
    "done": "done, but not counted",
}


def left_out(study: Study) -> list[Markup]:
    """The runs that no number here rests on, counted and named, by status."""
    by_status: dict[str, list[str]] = {}
    for group in study.groups:
        for run in group.others:
            by_status.setdefault(run.status, []).append(f"{group.label} seed {run.seed}")
    return [
        say("{} {}: {}.", len(names), _STATUS.get(status, status), joined(names))
        for status, names in by_status.items()
    ]
