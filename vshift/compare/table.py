"""Runs → one row a config: means and standard deviations over seeds, and what was left out.

Only numbers from summary.json of runs that are done enter a mean.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vshift.compare.text import visible
from vshift.errors import VShiftError, did_you_mean
from vshift.runs.reading import RunRecord, natural, number

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

# Accuracies and errors in percent, difference in points of test error.
COLUMNS = (
    "name",
    "n",
    "test_accuracy_mean",
    "test_accuracy_sd",
    "test_error_mean",
    "test_error_sd",
    "test_loss_mean",
    "test_loss_sd",
    "difference",
    "difference_se",
    "recalibrated_error_mean",
    "train_accuracy_eval_mode_mean",
    "train_accuracy_train_mode_mean",
    "shift_ratio_mean",
    "shift_ratio_max",
    "shift_ratio_max_layer",
    "data",
    "epochs",
    "device",
    "images_per_second",
    "parameters",
    "config_hash",
    "label",
    "seeds",
    "left_out",
)
WHOLE_COLUMNS = ("n", "left_out", "epochs", "parameters")
TEXT_COLUMNS = ("name", "config_hash", "label", "seeds", "shift_ratio_max_layer", "data", "device")


@dataclass(frozen=True)
class Comparison:
    """Rows in natural order of their names; notes go to stderr, the caption goes with a table."""

    rows: list[Row]
    baseline: str | None
    caption: str
    notes: list[str]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as typed columns; `seeds` as text, missing values as NA or NaN."""
        import pandas as pd

        rows = [{**row, "seeds": " ".join(map(str, row["seeds"]))} for row in self.rows]
        types = dict.fromkeys(COLUMNS, "float64")
        types |= dict.fromkeys(WHOLE_COLUMNS, "Int64") | dict.fromkeys(TEXT_COLUMNS, "object")
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)


@dataclass(frozen=True)
class _Group:
    name: str
    config_hash: str | None
    used: list[RunRecord]
    left_out: int


def compare(runs: Iterable[RunRecord], baseline: str | None = None) -> Comparison:
    """One row for each config, that is for each name and config_hash.

    `difference` is a row's mean test error minus the baseline's. The baseline is the row called so,
    or by default the only row without noise, if there is exactly one.

    Raises:
        VShiftError: no row, or more than one, is called as the baseline says.
    """
    notes: list[str] = []
    groups = _group(list(runs), notes)
    names = Counter(group.name for group in groups)
    rows = [_row(group, names[group.name] > 1) for group in groups]
    _flag_shared_names(rows, names, notes)
    chosen, reason = _choose_baseline(rows, groups, baseline, notes)
    if chosen is not None:
        _subtract(rows, groups, chosen, notes)
    for run in (run for group in groups for run in group.used):
        notes += [f"{run.name} seed {run.seed}: {problem}" for problem in run.problems]
    return Comparison(
        rows,
        chosen["label"] if chosen else None,
        _caption(chosen, reason),
        [visible(note) for note in notes],
    )


def _group(runs: Sequence[RunRecord], notes: list[str]) -> list[_Group]:
    hashes: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        hashes[run.name].update(filter(None, [run.config_hash]))
    members: dict[tuple[str, str | None], list[RunRecord]] = defaultdict(list)
    for run in runs:
        own = run.config_hash
        if own is None and len(hashes[run.name]) == 1:
            (own,) = hashes[run.name]  # too damaged to say its config: with its namesakes
        members[run.name, own].append(run)
    keys = sorted(members, key=lambda key: (natural(key[0]), key[1] or ""))
    return [_make_group(name, own, members[name, own], notes) for name, own in keys]


def _make_group(
    name: str, config_hash: str | None, runs: Sequence[RunRecord], notes: list[str]
) -> _Group:
    used: dict[int, RunRecord] = {}
    left_out = 0
    for run in runs:
        why = _why_not(run)
        if why is None and run.seed in used:
            why = f"the same config and seed are in {used[run.seed].path}, which is used"
        if why is None:
            used[run.seed] = run
        else:
            left_out += 1
            notes.append(f"left out: {name} seed {run.seed}: {why} ({run.path})")
    return _Group(name, config_hash, list(used.values()), left_out)


_WHY = {
    "running": "unfinished (running, or killed); the same `vshift train` goes on with it",
    "interrupted": "interrupted; the same `vshift train` goes on with it",
    "failed": "failed",
    "diverged": "diverged",
}


def _why_not(run: RunRecord) -> str | None:
    """The reason why a run's numbers cannot be used, None where they can."""
    if run.status != "done":
        return _WHY.get(run.status) or "; ".join(run.problems) or "damaged"
    if all(number(run.summary.get(key)) is None for key in ("test_accuracy", "test_loss")):
        return "; ".join(run.problems) or "its summary.json has no test_accuracy"
    return None


def _numbers(group: _Group, key: str) -> list[float]:
    return _known(number(run.summary.get(key)) for run in group.used)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n − 1); one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def _row(group: _Group, name_is_shared: bool) -> Row:
    accuracies = _numbers(group, "test_accuracy")
    errors = _known(_test_error(run) for run in group.used)
    losses = _numbers(group, "test_loss")
    short = (group.config_hash or "no hash")[:8]
    values: Row = {
        "name": group.name,
        "config_hash": group.config_hash,
        "label": f"{group.name} ({short})" if name_is_shared else group.name,
        "n": len(group.used),
        "seeds": [run.seed for run in group.used],
        "left_out": group.left_out,
        "test_accuracy_mean": _mean(accuracies),
        "test_accuracy_sd": _sd(accuracies),
        "test_error_mean": _mean(errors),
        "test_error_sd": _sd(errors),
        "test_loss_mean": _mean(losses),
        "test_loss_sd": _sd(losses),
        "shift_ratio_mean": _mean(_numbers(group, "shift_ratio_mean")),
        "shift_ratio_max": _mean(_numbers(group, "shift_ratio_max")),
        "shift_ratio_max_layer": _most_frequent(group, "shift_ratio_max_layer"),
        "images_per_second": _mean(
            _known(number(run.run.get("images_per_second")) for run in group.used)
        ),
        **_circumstances(group),
    }
    for key in ("train_accuracy_eval_mode", "train_accuracy_train_mode"):
        values[f"{key}_mean"] = _mean(_numbers(group, key))
    values["recalibrated_error_mean"] = _mean(_numbers(group, "test_error_recalibrated"))
    return {column: values.get(column) for column in COLUMNS}


def _test_error(run: RunRecord) -> float | None:
    """None of a run that classifies nothing."""
    error, accuracy = (number(run.summary.get(f"test_{key}")) for key in ("error", "accuracy"))
    return 100 - accuracy if error is None and accuracy is not None else error


def _most_frequent(group: _Group, key: str) -> str | None:
    """Ties go to the earlier seed."""
    texts = [run.summary.get(key) for run in group.used]
    counts = Counter(text for text in texts if isinstance(text, str))
    return counts.most_common(1)[0][0] if counts else None


def _circumstances(group: _Group) -> Row:
    if not group.used:
        return {}
    first = group.used[0]
    epochs = first.config.get("epochs")
    parameters = number(first.summary.get("parameters"))
    devices = dict.fromkeys(
        run.run["device"] for run in group.used if isinstance(run.run.get("device"), str)
    )
    return {
        "data": _data_name(first),
        "epochs": epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None,
        "device": " + ".join(devices) or None,
        "parameters": None if parameters is None else round(parameters),
    }


def _data_name(run: RunRecord) -> str | None:
    name = run.run.get("data")
    if not isinstance(name, str):
        section = run.config.get("data")
        name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def _flag_shared_names(rows: list[Row], names: Counter[str], notes: list[str]) -> None:
    for name in (name for name, count in names.items() if count > 1):
        labels = ", ".join(row["label"] for row in rows if row["name"] == name)
        notes.append(f"{name} is the name of different configs, each with its own row: {labels}")


def _choose_baseline(
    rows: list[Row], groups: list[_Group], name: str | None, notes: list[str]
) -> tuple[Row | None, str]:
    """The baseline's row and, for the caption, why it is the one."""
    if name is not None:
        return _named(rows, name), ""
    clean = [
        row for row, group in zip(rows, groups, strict=True) if group.used and _no_noise(group)
    ]
    if len(rows) > 1 and len(clean) == 1:
        return clean[0], ", the only config without noise"
    if len(clean) > 1:
        labels = ", ".join(row["label"] for row in clean)
        notes.append(
            f"no differences: several configs have no noise; choose one with --baseline: {labels}"
        )
    return None, ""


def _named(rows: list[Row], name: str) -> Row:
    matches = [row for row in rows if row["label"] == name]
    matches = matches or [row for row in rows if row["name"] == name]
    labels = [row["label"] for row in rows]
    if len(matches) > 1:
        raise VShiftError(
            f"--baseline {name}: different configs have this name; give one of "
            + ", ".join(f"`{row['label']}`" for row in matches)
        )
    if not matches:
        hint = did_you_mean(name, labels)
        raise VShiftError(
            f"--baseline {name}: no config is called so; {hint + ' ' if hint else ''}"
            f"there are: {visible(', '.join(labels)) or 'none'}"
        )
    if matches[0]["n"] == 0:
        raise VShiftError(f"--baseline {name}: none of its runs is done, so there is no test error")
    return matches[0]


def _no_noise(group: _Group) -> bool:
    """Whether the config has no noise, or only noise of strength 0."""
    network = group.used[0].config.get("network")
    if not isinstance(network, dict):
        return False
    noise = network.get("noise") or []
    entries = noise if isinstance(noise, list) else [noise]
    return all(isinstance(entry, dict) and _silent(entry) for entry in entries)


def _silent(noise: Row) -> bool:
    strengths = [noise[key] for key in ("rate", "sigma", "beta") if noise.get(key) is not None]
    return bool(strengths) and all(number(value) == 0 for value in strengths)


def _subtract(rows: list[Row], groups: list[_Group], baseline: Row, notes: list[str]) -> None:
    """Fill in difference, and difference_se = √(sd₁²/n₁ + sd₂²/n₂), the standard error of it."""
    budgets = [_budget(group) for group in groups]
    own = budgets[rows.index(baseline)]
    for row, budget in zip(rows, budgets, strict=True):
        others = sorted(
            key for key in own.keys() | budget.keys() if own.get(key) != budget.get(key)
        )
        if row is baseline:
            row["difference"] = 0.0 if row["test_error_mean"] is not None else None
        elif others and row["n"]:
            what = ", ".join(others[:4])
            notes.append(f"no difference for {row['label']}: not the baseline's {what}")
        elif None not in (row["test_error_mean"], baseline["test_error_mean"]):
            row["difference"] = row["test_error_mean"] - baseline["test_error_mean"]
            row["difference_se"] = _standard_error(row, baseline)


def _budget(group: _Group) -> Row:
    """What must be the same for two test errors to be compared: the images and the epochs."""
    if not group.used:
        return {}
    config = group.used[0].config
    section = config.get("data")
    data = {**(section if isinstance(section, dict) else {}), "name": _data_name(group.used[0])}
    budget = {f"data.{key}": value for key, value in data.items() if key != "batch_size"}
    return {**budget, "epochs": config.get("epochs")}


def _standard_error(row: Row, other: Row) -> float | None:
    if row["test_error_sd"] is None or other["test_error_sd"] is None:
        return None
    return math.sqrt(sum(r["test_error_sd"] ** 2 / r["n"] for r in (row, other)))


def _caption(baseline: Row | None, reason: str) -> str:
    text = "Mean ± sample standard deviation over n seeds."
    if baseline is None:
        return text
    return (
        f"{text} Difference: test error minus that of {baseline['label']}{reason}, "
        "in points ± standard error."
    )
