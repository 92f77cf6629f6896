"""Comparisons: rows of means and standard deviations over seeds, with differences.

Only numbers from summary.json of runs that are done enter a mean: those of the last epoch, never
the best one, for that would choose an epoch on the test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vshift.compare.baseline import choose, data_name, differences_to, note_differing_keys, unit_of
from vshift.compare.fields import Fields, metric, sort_key, unknown
from vshift.compare.groups import Group, group_by_config, group_by_values
from vshift.compare.statistics import Difference
from vshift.runs.files import Row
from vshift.runs.read import RunRecord, number
from vshift.runs.schema import SITE_KINDS, SUMMARY_COLUMNS, Column, column_name
from vshift.text import (
    LEVEL,
    did_you_mean,
    escape_control,
    format_p,
    join_words,
    list_names,
    pluralize,
)

if TYPE_CHECKING:
    import pandas as pd

# The columns of summary.json that every table has; a new one with a heading joins them.
SHOWN = {key: c for key, c in SUMMARY_COLUMNS.items() if c.heading and key != "parameters"}
# What a row calls the mean of a column, where it is not `<key>_mean`.
_NAMES = {
    "test_error_recalibrated": "recalibrated_error_mean",
    "shift_ratio_mean": "shift_ratio_mean",
    "shift_ratio_max": "shift_ratio_max",
}


# What a config is judged by: the first of them that its runs have.
SCORES = ("test_error", "test_rmse", "test_loss")


def row_key(column: Column) -> str:
    """The key of a row that holds a column's mean, or the most frequent word."""
    return column.key if column.is_text else _NAMES.get(column.key, f"{column.key}_mean")


# What a row calls the word that a column depends on, where that is not the word's own key.
_WORDS = {"recalibration": "recalibrated_by"}


def word_key(column: Column) -> str:
    """The key of a row that holds the word that a column depends on."""
    return _WORDS.get(column.depends_on, column.depends_on)


def words_of(runs: Iterable[RunRecord], column: Column) -> list[str]:
    """The words of the runs that have a value of a column; empty where one does not say it."""
    having = (run for run in runs if metric(run, column.key) is not None)
    return list(dict.fromkeys(str(run.summary.get(column.depends_on) or "") for run in having))


# Accuracies and errors in percent, differences of test error in points.
COLUMNS = tuple(dict.fromkeys((
    "name", "n", "test_accuracy_mean", "test_accuracy_sd", "test_error_mean", "test_error_sd",
    "test_rmse_mean", "test_rmse_sd", "test_r2_mean", "test_r2_sd", "test_loss_mean",
    "test_loss_sd", "difference", "difference_se", "difference_low",
    "difference_high", "p_value", "p_adjusted", "seeds_needed", "verdict",
    "recalibrated_error_mean", "recalibrated_by", "validation_error_mean",
    "validation_error_sd", "train_accuracy_eval_mode_mean", "train_accuracy_train_mode_mean",
    "shift_ratio_mean", "shift_ratio_max", "shift_ratio_max_layer", "data", "epochs", "device",
    "images_per_second", "parameters", "config_hash", "label", "seeds", "left_out", "differs_in",
    *map(row_key, SHOWN.values()),
)))  # fmt: skip
_LISTS = ("seeds", "differs_in")
_TYPES = {
    **dict.fromkeys(("n", "left_out", "epochs", "parameters", "seeds_needed"), "Int64"),
    **dict.fromkeys(("name", "config_hash", "label", "data", "device", "verdict"), "object"),
    "recalibrated_by": "object",
    **dict.fromkeys((c.key for c in SHOWN.values() if c.is_text), "object"),
    **dict.fromkeys(_LISTS, "object"),
}


@dataclass(frozen=True)
class Comparison:
    """The rows of a table with their groups and differences; notes go to stderr.

    Attributes:
        rows: one flat object each, with COLUMNS, a key for each of `by`, and for each of `metrics`
            `<metric>_mean` and `<metric>_sd` (a word's most frequent value under its own name).
        groups: the runs of each row, in the rows' order.
        differences: each row's difference to the baseline, None where there is none.
        baseline: the label of the row that differences are taken to.
        about_difference: what a difference is and how it was tested; empty where there is none.
        metric: what the differences are of.
        reference: the label of the row that `differs_in` of the others speaks of.
    """

    rows: list[Row]
    groups: list[Group]
    differences: list[Difference | None]
    baseline: str | None
    about_difference: str
    notes: list[str]
    by: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    metric: str = "test_error"
    reference: str | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """COLUMNS of the rows as typed columns; lists as text, missing values as NA or NaN."""
        import pandas as pd

        lists = {key: [" ".join(map(str, row[key])) for row in self.rows] for key in _LISTS}
        frame = pd.DataFrame(self.rows, columns=list(COLUMNS)).assign(**lists)
        return frame.astype({key: _TYPES.get(key, "float64") for key in COLUMNS})


def compare(
    runs: Iterable[RunRecord] | Fields,
    baseline: str | None = None,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    difference: str | None = None,
    sort: str | None = None,
) -> Comparison:
    """Compare configs, or combinations of the values of `by`: one row each.

    Args:
        baseline: the row that differences are taken to; by default the only one without noise, if
            there is exactly one (one training, under however many names).
        by: fields (see `Fields`) whose values make a row: config keys, name, seed, status.
        metrics: further keys of summary.json.
        difference: the metric whose difference to the baseline is tested; by default the first of
            SCORES that a run has.
        sort: a column of the rows, a metric or a config key; with a minus in front from large to
            small.

    Raises:
        VShiftError: there is no such field, metric, column or baseline.
    """
    fields = runs if isinstance(runs, Fields) else Fields(runs)
    by = [fields.require(key, "--by", section=True) for key in by]
    for key in metrics:
        fields.require_metric(key, "--metrics")
    if difference is not None:
        fields.require_metric(difference, "--difference")
    scored = (key for key in SCORES if any(metric(run, key) is not None for run in fields.runs))
    difference = difference or next(scored, SCORES[0])
    notes: list[str] = []
    groups = group_by_values(fields, by, notes) if by else group_by_config(fields, notes)
    rows = [_row(group, by, metrics) for group in groups]
    chosen, reason = choose(groups, baseline, notes)
    found: list[Difference | None] = [None] * len(groups)
    if chosen:
        found = differences_to(chosen, groups, difference, notes)
        for row, group, each in zip(rows, groups, found, strict=True):
            if group is chosen:
                row["difference"] = 0.0 if group.numbers(difference) else None
            elif each:
                row |= _difference_columns(each, unit_of(difference))
    tests = max((each.tests for each in found if each), default=0)
    reference = chosen or next((group for group in groups if group.runs), None)
    notes += _word_notes(groups, (*metrics, difference))
    notes += [] if metrics else _site_notes(groups)
    if reference is not None:
        note_differing_keys(rows, groups, reference, by, notes)
    for run in (run for group in groups for run in group.runs):
        notes += [f"{run.name} seed {run.seed}: {problem}" for problem in run.problems]
    about = _about_difference(rows, chosen, reason, difference, tests) if chosen else ""
    places = _order(rows, groups, fields, sort, notes) if sort else range(len(rows))
    return Comparison(
        [rows[place] for place in places],
        [groups[place] for place in places],
        [found[place] for place in places],
        chosen.label if chosen else None,
        about,
        [escape_control(note) for note in notes],
        tuple(by),
        tuple(metrics),
        difference,
        reference.label if reference else None,
    )


def _difference_columns(found: Difference, unit: str) -> Row:
    return {
        "difference": found.value,
        "difference_se": found.standard_error,
        "difference_low": found.low,
        "difference_high": found.high,
        "p_value": found.p_value,
        "p_adjusted": found.p_adjusted,
        "seeds_needed": found.seeds_needed,
        "verdict": found.verdict(unit),
    }


def _row(group: Group, by: Sequence[str], metrics: Sequence[str]) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "name": group.name,
        "config_hash": group.config_hash,
        "label": group.label,
        "n": len(group.runs),
        "seeds": [run.seed for run in group.runs],
        "left_out": len(group.others),
        "differs_in": [],
        **_spread(group, "test_accuracy"),
    }
    if group.runs:
        epochs = group.config.get("epochs")
        parameters = number(group.runs[0].summary.get("parameters"))
        devices = list(dict.fromkeys(filter(None, map(device_of, group.runs))))
        speeds = [number(run.run.get("images_per_second")) for run in group.runs]
        known = [speed for speed in speeds if speed is not None]
        if len(devices) > 1:  # a mean over them would be of nothing
            known = []
        row |= {
            "data": " + ".join(dict.fromkeys(filter(None, map(data_name, group.runs)))) or None,
            "epochs": epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None,
            "device": " + ".join(devices) or None,
            "images_per_second": sum(known) / len(known) if known else None,
            "parameters": None if parameters is None else round(parameters),
        }
    for key, column in SHOWN.items():
        if column.depends_on:
            words = words_of(group.runs, column)
            if len(words) > 1:  # a mean over them would be of nothing
                continue
            row[word_key(column)] = "".join(words) or row[word_key(column)]
        found = _spread(group, key)
        word = group.most_frequent(key) if column.is_text else None
        row[row_key(column)] = found.get(f"{key}_mean", word)
        if f"{key}_sd" in COLUMNS:
            row[f"{key}_sd"] = found.get(f"{key}_sd")
    row |= dict(zip(by, group.key, strict=True))
    for key in metrics:
        row |= _spread(group, key)
    return row


def _spread(group: Group, key: str) -> Row:
    """Mean and standard deviation of a metric; of words the most frequent one."""
    sample = group.sample(key)
    word = group.most_frequent(key) if sample is None else None
    if word is not None:
        return {key: word}
    return {f"{key}_mean": sample and sample.mean, f"{key}_sd": sample and sample.sd}


def _word_notes(groups: Sequence[Group], metrics: Iterable[str]) -> list[str]:
    """Notes on values that depend on a word which differs within a row or a metric's column."""
    notes = []
    for column in SHOWN.values():
        for group in groups if column.depends_on else ():
            words = words_of(group.runs, column)
            if len(words) > 1:
                notes.append(
                    f"{group.label} has no {column.key}: its runs differ in {column.depends_on} "
                    f"({', '.join(words)})"
                )
    for key in dict.fromkeys(metrics):
        metric_column = SUMMARY_COLUMNS.get(key)
        if metric_column is not None and metric_column.depends_on:
            found = {group.label: words_of(group.runs, metric_column) for group in groups}
            if len({word for words in found.values() for word in words}) > 1:
                pairs = [
                    f"{label} ({join_words(words)})" for label, words in found.items() if words
                ]
                notes.append(
                    f"the values of {key} differ in {metric_column.depends_on}: "
                    f"{list_names(pairs, 8)}"
                )
    return notes


def _site_notes(groups: Sequence[Group]) -> list[str]:
    """One note on the configs without BN whose shift was measured at sites of other kinds."""
    found: dict[str, None] = {}
    labels = []
    for group in groups:
        keys = [f"shift_ratio_mean_{kind}" for kind in SITE_KINDS]
        keys = [key for key in keys if group.sample(key)]
        if keys and not group.sample("shift_ratio_mean"):
            labels.append(group.label)
            found |= dict.fromkeys(keys)
    if not labels:
        return []
    return [
        f"no BN layer in {list_names(labels, 4)}: the shift by kind of site is shown by --metrics "
        f"{','.join(found)}"
    ]


def device_of(run: RunRecord) -> str | None:
    """The device of a run; runs of earlier versions say "1 threads"."""
    device = run.run.get("device")
    return re.sub(r"\b1 threads\b", "1 thread", device) if isinstance(device, str) else None


def _order(
    rows: list[Row], groups: Sequence[Group], fields: Fields, sort: str, notes: list[str]
) -> list[int]:
    """Sort the rows' places by a column; rows without a value come last.

    Raises:
        VShiftError: there is no such column, with the nearest and all of them.
    """
    word = sort.removeprefix("-")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    heads = {_plain(column.heading): row_key(column) for column in SHOWN.values()}
    names = (word, f"{word}_mean", heads.get(_plain(word)))
    key = next((key for key in names if key in columns), "")
    if key:
        values = [row.get(key) for row in rows]
    elif fields.is_known(key := fields.resolve(word, "--sort")):  # a config key's, of the first run
        fields.require(key, "--sort")
        values = [fields.value(g.runs[0], key) if g.runs else None for g in groups]
    else:
        filled = [key for key in columns if any(row.get(key) not in (None, []) for row in rows)]
        filled = [key.removesuffix("_mean") for key in filled]
        hint = did_you_mean(word, [*filled, *heads]) or fields.suggest(word)
        what = f"--sort {escape_control(sort)}: there is no such column"
        raise unknown(what, hint, {"columns": filled} | fields.config_names)
    if key.startswith("test_") and any(row["validation_error_mean"] is not None for row in rows):
        notes.append(
            f"sorted by {key}; to choose a setting, sort by validation_error: the test images are "
            "for the one that was chosen"
        )
    some = [place for place, value in enumerate(values) if value is not None]
    some.sort(key=lambda place: sort_key(values[place]), reverse=sort.startswith("-"))
    return some + [place for place, value in enumerate(values) if value is None]


def _plain(heading: str) -> str:
    """A heading as somebody types it: `test error` for `test error %`."""
    return " ".join(heading.replace("%", "").lower().split())


def _about_difference(rows: list[Row], baseline: Group, reason: str, of: str, tests: int) -> str:
    unit = f", in {unit_of(of)}" if unit_of(of) else ""
    text = (
        f"Difference: {column_name(of)} minus that of {baseline.label}{reason}{unit} "
        "± standard error"
    )
    if tests:
        least = min(row["p_adjusted"] for row in rows if row["p_adjusted"] is not None)
        none = ("none is", f"smallest {format_p(least)}; ")
        which, p = ("*:", "") if least < LEVEL else none
        tested = f"{p}Welch, Holm over {pluralize(tests, 'difference')}"
        text += f"; {which} significant at {100 * LEVEL:g} % ({tested})."
    elif any(row["verdict"] for row in rows):
        text += ". One seed per config leaves differences untested; take 3 or more."
    else:
        text += "."
    return escape_control(text)
