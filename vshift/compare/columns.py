"""The columns of the tables for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vshift.compare.table import Comparison, Row
from vshift.compare.text import NONE, fixed, integer, text, visible, with_spread


@dataclass(frozen=True)
class Column:
    """`keep` orders what a narrow terminal leaves out: low numbers go first."""

    head: str
    cell: Callable[[Row], str]
    keep: int
    is_text: bool = False
    folds: bool = False  # into the caption, where all rows say the same


def columns(comparison: Comparison) -> list[Column]:
    """Those that have something to say, in order."""

    def difference(row: Row) -> str:
        if row["label"] == comparison.baseline:
            return "baseline"
        return with_spread(row["difference"], row["difference_se"], sign="+")

    every = [
        Column("config", lambda r: visible(r["label"]), 99, is_text=True),
        Column("test error %", _test_error, 98),
        Column("test loss", _test_loss, 98),
        Column("difference", difference, 97),
        Column("after\nrecalibration", _fixed("recalibrated_error_mean", 2), 7),
        Column("train acc %\n(eval mode)", _fixed("train_accuracy_eval_mode_mean", 2), 8),
        Column("train acc %\n(train mode)", _fixed("train_accuracy_train_mode_mean", 2), 8),
        Column("shift mean", _fixed("shift_ratio_mean", 3), 9),
        Column("shift max", _fixed("shift_ratio_max", 3), 6),
        Column("largest shift at", lambda r: text(r["shift_ratio_max_layer"]), 5, is_text=True),
        Column("data", lambda r: text(r["data"]), 4, is_text=True, folds=True),
        Column("epochs", lambda r: integer(r["epochs"]), 3, folds=True),
        Column("device", lambda r: text(r["device"]), 2, is_text=True, folds=True),
        Column("images/s", lambda r: integer(r["images_per_second"]), 0),
        Column("parameters", lambda r: integer(r["parameters"]), 1, folds=True),
    ]
    silent = {NONE, "baseline"}
    return [c for c in every if {c.cell(row) for row in comparison.rows} - silent]


def _test_error(row: Row) -> str:
    if row["test_error_mean"] is None and row["test_loss_mean"] is not None:
        return NONE  # nothing is classified
    return f"{with_spread(row['test_error_mean'], row['test_error_sd'])} (n={row['n']})"


def _test_loss(row: Row) -> str:
    """Only where there is no test error to show."""
    if row["test_error_mean"] is not None or row["test_loss_mean"] is None:
        return NONE
    return f"{with_spread(row['test_loss_mean'], row['test_loss_sd'], digits=4)} (n={row['n']})"


def _fixed(key: str, digits: int) -> Callable[[Row], str]:
    return lambda row: fixed(row[key], digits)


def fold(comparison: Comparison) -> tuple[list[Column], str]:
    """The columns that differ between rows, and the caption with those that do not."""
    shown, same = [], []
    for column in columns(comparison):
        values = {column.cell(row) for row in comparison.rows}
        if column.folds and len(values) == 1:
            same.append(f"{column.head} {values.pop()}")
        else:
            shown.append(column)
    caption = visible(comparison.caption) + (f" All rows: {', '.join(same)}." if same else "")
    return shown, caption
