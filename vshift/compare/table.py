"""Runs → rows: means and standard deviations over seeds, differences, and what was left out.

Only numbers from summary.json of runs that are done enter a mean: those of the last epoch, never
the best one, for that would choose an epoch on the test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vshift.compare.baseline import choose, data_name, flag_others, subtract, unit_of
from vshift.compare.fields import Fields, Row, order
from vshift.compare.groups import Group, by_config, by_values, known
from vshift.compare.statistics import describe
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord, number
from vshift.text import did_you_mean, escape_control, pluralize

if TYPE_CHECKING:
    import pandas as pd

# Accuracies and errors in percent, differences in points of test error.
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
    "difference_low",
    "difference_high",
    "p_value",
    "p_adjusted",
    "seeds_needed",
    "verdict",
    "recalibrated_error_mean",
    "validation_error_mean",
    "validation_error_sd",
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
    "differs_in",
)
WHOLE_COLUMNS = ("n", "left_out", "epochs", "parameters", "seeds_needed")
LIST_COLUMNS = ("seeds", "differs_in")
TEXT_COLUMNS = (
    "name", "config_hash", "label", "shift_ratio_max_layer", "data", "device", "verdict",
    *LIST_COLUMNS,
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Rows in order; notes go to stderr, the caption goes with a table.

    Attributes:
        rows: one flat object each, with COLUMNS, a key for each of `by`, and for each of `metrics`
            `<metric>_mean` and `<metric>_sd` (a word's most frequent value under its own name).
        baseline: the label of the row that differences are taken to.
        metric: what the differences are of.
        reference: the label of the row that `differs_in` of the others speaks of.
        groups: the runs of each row, in the rows' order.
        tests: how many tests the adjusted p values are over.
    """

    rows: list[Row]
    baseline: str | None
    caption: str
    notes: list[str]
    by: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    metric: str = "test_error"
    reference: str | None = None
    groups: tuple[Group, ...] = ()
    tests: int = 0

    @property
    def frame(self) -> pd.DataFrame:
        """COLUMNS of the rows as typed columns; lists as text, missing values as NA or NaN."""
        import pandas as pd

        lists = {key: [" ".join(map(str, row[key])) for row in self.rows] for key in LIST_COLUMNS}
        types = dict.fromkeys(COLUMNS, "float64")
        types |= dict.fromkeys(WHOLE_COLUMNS, "Int64") | dict.fromkeys(TEXT_COLUMNS, "object")
        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return frame.assign(**lists).astype(types)


def compare(
    runs: Iterable[RunRecord] | Fields,
    baseline: str | None = None,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    difference: str = "test_error",
    sort: str | None = None,
) -> Comparison:
    """One row for each config, or for each combination of values of `by`.

    Args:
        baseline: the row that differences are taken to; by default the only one without noise, if
            there is exactly one (one training, under however many names).
        by: fields (see `Fields`) whose values make a row: config keys, name, seed, status.
        metrics: further keys of summary.json.
        difference: the metric whose difference to the baseline is tested.
        sort: a column of the rows, a metric or a config key; with a minus in front from large to
            small.

    Raises:
        VShiftError: there is no such field, metric, column or baseline.
    """
    fields = runs if isinstance(runs, Fields) else Fields(runs)
    for key in metrics:
        fields.require_metric(key, "--metrics")
    if difference != "test_error":
        fields.require_metric(difference, "--difference")
    notes: list[str] = []
    groups = by_values(fields, by, notes) if by else by_config(fields, notes)
    rows = [_row(group, by, metrics) for group in groups]
    chosen, reason = choose(groups, baseline, notes)
    tests = subtract(rows, groups, chosen, difference, notes) if chosen else 0
    reference = chosen or next((group for group in groups if group.used), None)
    if reference is not None:
        flag_others(rows, groups, reference, by, notes)
    for run in (run for group in groups for run in group.used):
        notes += [f"{run.name} seed {run.seed}: {problem}" for problem in run.problems]
    caption = _caption(rows, chosen, reason, difference, tests)
    if sort:
        places = _sorted(rows, _sort_values(rows, groups, fields, sort), sort, notes)
        rows, groups = [rows[place] for place in places], [groups[place] for place in places]
    return Comparison(
        rows,
        chosen.label if chosen else None,
        caption,
        [escape_control(note) for note in notes],
        tuple(by),
        tuple(metrics),
        difference,
        reference.label if reference else None,
        tuple(groups),
        tests,
    )


def _row(group: Group, by: Sequence[str], metrics: Sequence[str]) -> Row:
    values: Row = {
        "name": group.name,
        "config_hash": group.config_hash,
        "label": group.label,
        "n": len(group.used),
        "seeds": [run.seed for run in group.used],
        "left_out": len(group.others),
        "differs_in": [],
        "shift_ratio_mean": _mean(group, "shift_ratio_mean"),
        "shift_ratio_max": _mean(group, "shift_ratio_max"),
        "shift_ratio_max_layer": group.most_frequent("shift_ratio_max_layer"),
        "recalibrated_error_mean": _mean(group, "test_error_recalibrated"),
        **_circumstances(group),
    }
    for key in ("test_accuracy", "test_error", "test_loss", "validation_error"):
        values |= _spread(group, key)
    for key in ("train_accuracy_eval_mode", "train_accuracy_train_mode"):
        values[f"{key}_mean"] = _mean(group, key)
    row = {column: values.get(column) for column in COLUMNS}
    row |= dict(zip(by, group.key, strict=True))
    for key in metrics:
        row |= _spread(group, key)
    return row


def _mean(group: Group, key: str) -> float | None:
    sample = describe(group.numbers(key))
    return sample.mean if sample else None


def _spread(group: Group, key: str) -> Row:
    """Mean and standard deviation of a metric; of words the most frequent one."""
    word, sample = group.most_frequent(key), describe(group.numbers(key))
    if word is not None and sample is None:
        return {key: word}
    return {f"{key}_mean": sample and sample.mean, f"{key}_sd": sample and sample.sd}


def _circumstances(group: Group) -> Row:
    if not group.used:
        return {}
    first = group.used[0]
    epochs = group.config.get("epochs")
    parameters = number(first.summary.get("parameters"))
    speeds = known(number(run.run.get("images_per_second")) for run in group.used)
    devices = dict.fromkeys(filter(None, map(device_of, group.used)))
    return {
        "data": " + ".join(dict.fromkeys(filter(None, map(data_name, group.used)))) or None,
        "epochs": epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None,
        "device": " + ".join(devices) or None,
        "images_per_second": sum(speeds) / len(speeds) if speeds else None,
        "parameters": None if parameters is None else round(parameters),
    }


def device_of(run: RunRecord) -> str | None:
    """Where a run ran; runs of earlier versions say "1 threads"."""
    device = run.run.get("device")
    return re.sub(r"\b1 threads\b", "1 thread", device) if isinstance(device, str) else None


def _sort_values(
    rows: list[Row], groups: Sequence[Group], fields: Fields, sort: str
) -> tuple[str, list[Any]]:
    """The column, and every row's value in it; a config key's value is that of the first run.

    Raises:
        VShiftError: there is no such column, with the nearest and all of them.
    """
    word = sort.removeprefix("-")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    key = next((key for key in (word, f"{word}_mean") if key in columns), None)
    if key is not None:
        return key, [row.get(key) for row in rows]
    if fields.is_known(word):
        fields.require(word, "--sort")
        return word, [fields.value(g.used[0], word) if g.used else None for g in groups]
    names = [*columns, *(key for key, section in fields.config_keys.items() if not section)]
    hint = did_you_mean(word, names)
    raise VShiftError(
        f"--sort {escape_control(sort)}: there is no such column; {hint + ' ' if hint else ''}"
        f"there are: {escape_control(', '.join(columns))}; and config keys such as "
        "network.noise.rate"
    )


def _sorted(
    rows: list[Row], column: tuple[str, list[Any]], sort: str, notes: list[str]
) -> list[int]:
    """The rows' places in order; rows without a value last, ties as they were."""
    key, values = column
    if key.startswith("test_") and any(row["validation_error_mean"] is not None for row in rows):
        notes.append(
            f"sorted by {key}; to choose a setting, sort by validation_error: the test images are "
            "for the one that was chosen"
        )
    some = [place for place, value in enumerate(values) if value is not None]
    some.sort(key=lambda place: order(values[place]), reverse=sort.startswith("-"))
    return some + [place for place, value in enumerate(values) if value is None]


def _caption(rows: list[Row], baseline: Group | None, reason: str, metric: str, tests: int) -> str:
    text = "Mean ± sample standard deviation over n seeds."
    if baseline is not None:
        unit = f", in {unit_of(metric)}" if unit_of(metric) else ""
        text += (
            f" Difference: {metric.replace('_', ' ')} minus that of {baseline.label}{reason}{unit} "
            "± standard error."
        )
    if tests:
        text += (
            " Interval: Welch, 95 %. *, yes: more than chance, by Welch's test at 5 % with Holm "
            f"over {pluralize(tests, 'difference')}."
        )
    elif any(row["verdict"] for row in rows):
        text += " One seed cannot tell a difference from chance."
    left_out = sum(row["left_out"] for row in rows)
    if left_out:
        text += f" Left out: {pluralize(left_out, 'run')}."
    return text
