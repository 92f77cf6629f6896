"""The columns of a comparison, for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vshift.compare.baseline import SAME
from vshift.compare.fields import Row
from vshift.compare.groups import short_heads
from vshift.compare.statistics import LEVEL
from vshift.compare.table import Comparison
from vshift.tables import Column, Table
from vshift.text import (
    NONE,
    escape_control,
    format_integer,
    format_number,
    format_spread,
    format_text,
    format_value,
)

ONE_SEED = "one seed"
_WHOLE = ("epoch", "parameters", "bn_layers", "monte_carlo_passes")
_KEYS = 3  # shown of those in which a row differs


@dataclass(frozen=True)
class _Spec:
    """A column and how its cells come out of the rows."""

    head: str
    cell: Callable[[Row], str]
    keep: int
    is_text: bool = False
    folds: bool = False  # into the caption, where all rows say the same

    @property
    def column(self) -> Column:
        return Column(self.head, self.keep, self.is_text)


def to_table(comparison: Comparison) -> Table:
    """The comparison's columns that have something to say; where all rows agree, the caption."""
    labels = _labels(comparison)
    specs = [*labels, *(_chosen(comparison) if comparison.metrics else _standard(comparison))]
    silent = {NONE, "baseline", ONE_SEED}
    shown_columns, same = [], []
    for spec in specs:
        values = {spec.cell(row) for row in comparison.rows}
        if not values - silent and spec not in labels:
            continue
        if spec.folds and len(values) == 1:
            same.append(f"{spec.head} {values.pop()}")
        else:
            shown_columns.append(spec)
    caption = comparison.caption + _shared_differences(comparison)
    caption = escape_control(caption) + (f" All rows: {', '.join(same)}." if same else "")
    return Table(
        [spec.column for spec in shown_columns],
        [[spec.cell(row) for spec in shown_columns] for row in comparison.rows],
        caption,
        comparison.rows,
        comparison.notes,
        labels=len(labels),
    )


def _labels(comparison: Comparison) -> list[_Spec]:
    """The config's name, or a column for each key that rows are grouped by."""

    def cell(key: str) -> Callable[[Row], str]:
        return lambda row: format_value(row[key])

    if not comparison.by:
        return [_Spec("config", lambda row: escape_control(row["label"]), 99, is_text=True)]
    heads = short_heads(comparison.by)
    return [
        _Spec(escape_control(head), cell(key), 99, is_text=True)
        for head, key in zip(heads, comparison.by, strict=True)
    ]


def _chosen(comparison: Comparison) -> list[_Spec]:
    """n, the metrics asked for, and the difference if it is of one of them."""
    specs = [_Spec("n", lambda row: str(row["n"]), 98, folds=True)]
    specs += [_Spec(escape_control(key), metric_cell(key), 90) for key in comparison.metrics]
    return specs + (_tested(comparison) if comparison.metric in comparison.metrics else [])


def _standard(comparison: Comparison) -> list[_Spec]:
    difference, *tested = _tested(comparison)
    return [
        _Spec("test error %", _test_error, 98),
        _Spec("test loss", _test_loss, 98),
        difference,
        _Spec("after\nrecalibration", _fixed("recalibrated_error_mean", 2), 7),
        _Spec("validation\nerror %", _validation_error, 6),
        _Spec("train acc %\n(eval mode)", _fixed("train_accuracy_eval_mode_mean", 2), 8),
        _Spec("train acc %\n(train mode)", _fixed("train_accuracy_train_mode_mean", 2), 8),
        _Spec("shift mean", _fixed("shift_ratio_mean", 3), 11),
        _Spec("shift max", _fixed("shift_ratio_max", 3), 6),
        _Spec(
            "largest shift at", lambda r: format_text(r["shift_ratio_max_layer"]), 5, is_text=True
        ),
        *tested,
        *_differing(comparison),
        _Spec("data", lambda r: format_text(r["data"]), 4, is_text=True, folds=True),
        _Spec("epochs", lambda r: format_integer(r["epochs"]), 3, folds=True),
        _Spec("device", lambda r: format_text(r["device"]), 2, is_text=True, folds=True),
        _Spec("images/s", lambda r: format_integer(r["images_per_second"]), 0),
        _Spec("parameters", lambda r: format_integer(r["parameters"]), 1, folds=True),
    ]


def _tested(comparison: Comparison) -> list[_Spec]:
    """The difference to the baseline, its interval, and whether it is more than chance."""
    digits = digits_of(comparison.metric)

    def difference(row: Row) -> str:
        if row["label"] == comparison.baseline:
            return "baseline"
        text = format_spread(row["difference"], row["difference_se"], sign="+", digits=digits)
        return f"{text} *" if is_clear(row) else text

    def interval(row: Row) -> str:
        low, high = (
            format_number(row[f"difference_{end}"], digits, "+") for end in ("low", "high")
        )
        return NONE if NONE in (low, high) else f"{low} to {high}"

    head = "difference"
    if comparison.metric != "test_error":
        head += f"\nin {escape_control(comparison.metric)}"
    return [
        _Spec(head, difference, 97),
        _Spec("95 % interval\nof difference", interval, 9),
        _Spec("more than\nchance", _chance, 10, is_text=True),
    ]


def is_clear(row: Row) -> bool:
    """Whether a row's difference is more than chance: what a star marks."""
    return row["p_adjusted"] is not None and row["p_adjusted"] < LEVEL


def _chance(row: Row) -> str:
    """The verdict in three words; p is adjusted for the table."""
    p_value = row["p_adjusted"]
    if row["verdict"] == SAME:
        return "same training"
    if p_value is None:
        return ONE_SEED if row["verdict"] and row["difference_se"] is None else NONE
    p_text = "p<0.001" if p_value < 0.001 else f"p={p_value:.3f}"
    if is_clear(row):
        return f"yes ({p_text})"
    needed = row["seeds_needed"]
    return f"needs {needed:,} seeds ({p_text})" if needed else f"not seen ({p_text})"


def _differing(comparison: Comparison) -> list[_Spec]:
    """In which keys a config differs from the reference, where that is not the same for all."""
    if comparison.by or len(_all_differences(comparison)) < 2:
        return []

    def cell(row: Row) -> str:
        keys = row["differs_in"]
        more = f" and {len(keys) - _KEYS} more" if len(keys) > _KEYS else ""
        return escape_control(", ".join(keys[:_KEYS])) + more if keys else NONE

    return [
        _Spec(
            f"differs from\n{escape_control(comparison.reference or '')} in", cell, 4, is_text=True
        )
    ]


def _all_differences(comparison: Comparison) -> set[tuple[str, ...]]:
    return {tuple(row["differs_in"]) for row in comparison.rows if row["differs_in"]}


def _shared_differences(comparison: Comparison) -> str:
    """A sentence where all configs differ from the reference in the same keys."""
    found = _all_differences(comparison)
    if comparison.by or len(found) != 1:
        return ""
    (keys,) = found
    more = f" and {len(keys) - _KEYS} more keys" if len(keys) > _KEYS else ""
    return f" Configs differ from {comparison.reference} in {', '.join(keys[:_KEYS])}{more}."


def digits_of(key: str) -> int:
    """Decimals of a metric for people: percent 2, ratios 3, the rest 4."""
    if "_error" in key or "_accuracy" in key or key.endswith("_cost") or "_recovered_" in key:
        return 2
    return 3 if "_ratio" in key else 4


def metric_cell(key: str) -> Callable[[Row], str]:
    """A row's mean ± standard deviation of a metric, or its most frequent word."""

    def cell(row: Row) -> str:
        mean, sd = row.get(f"{key}_mean"), row.get(f"{key}_sd")
        if isinstance(row.get(key), str):
            return format_text(row[key])
        if key in _WHOLE:
            return format_integer(mean)
        return format_spread(mean, sd, digits=digits_of(key))

    return cell


def _test_error(row: Row) -> str:
    if row["test_error_mean"] is None and row["test_loss_mean"] is not None:
        return NONE  # nothing is classified
    return f"{format_spread(row['test_error_mean'], row['test_error_sd'])} (n={row['n']})"


def _test_loss(row: Row) -> str:
    """Only where there is no test error to show."""
    if row["test_error_mean"] is not None or row["test_loss_mean"] is None:
        return NONE
    return f"{format_spread(row['test_loss_mean'], row['test_loss_sd'], digits=4)} (n={row['n']})"


def _validation_error(row: Row) -> str:
    return format_spread(row["validation_error_mean"], row["validation_error_sd"])


def _fixed(key: str, digits: int) -> Callable[[Row], str]:
    return lambda row: format_number(row[key], digits)
