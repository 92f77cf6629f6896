"""`vshift recalibrate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from vshift.cli.options import DeviceOption, changes_of
from vshift.errors import VShiftError
from vshift.text import NONE, escape_control, format_number, join_words, suggest

if TYPE_CHECKING:
    from vshift.tables import Table


class RecalibrateCommand(TyperCommand):
    """`vshift recalibrate`, which imports the config only when its help lists the methods."""

    def get_help(self, ctx: Any) -> str:
        """The help, with the names of the methods."""
        from vshift.config.recalibration import ADJUST, METHODS

        *names, last = METHODS
        (option,) = (one for one in self.params if one.name == "methods")
        assert isinstance(option, TyperOption)
        option.help = (
            f"{', '.join(names)} or {last}; repeatable. Default: {join_words(ADJUST)}, "
            "the readings of the paper's Adjust."
        )
        return super().get_help(ctx)


def recalibrate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="See RecalibrateCommand."),
    ] = None,
    batches: Annotated[
        int | None, typer.Option("--batches", help="Training batches to take statistics of.")
    ] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Also write the mode matrix, modes.json.")
    ] = False,
    monte_carlo: Annotated[
        int, typer.Option("--monte-carlo", help="Also test with this many passes with noise on.")
    ] = 0,
    monte_carlo_bn: Annotated[
        int,
        typer.Option(
            "--monte-carlo-bn",
            help="Also test with this many passes with BN on single training batches' statistics.",
        ),
    ] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="More of the config, e.g. recalibration.augment=false.",
        ),
    ] = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Re-estimate BN statistics of finished runs and test; the checkpoint stays as it is."""
    from vshift.config.recalibration import ADJUST, METHODS
    from vshift.runs import RunFolder, find_runs
    from vshift.tables import write

    for method in methods or []:
        if method not in METHODS:
            raise VShiftError(
                f"--method {escape_control(method)}: no such method; {suggest(method, METHODS)}"
                f"allowed: {', '.join(METHODS)}"
            )
    changes = [f"recalibration.methods={json.dumps(methods or ADJUST)}"]
    changes += [f"measure.monte_carlo={monte_carlo}", f"measure.monte_carlo_bn={monte_carlo_bn}"]
    changes += [f"measure.modes={json.dumps(modes)}"]
    changes += [] if batches is None else [f"recalibration.batches={batches}"]
    folders = [record.path for record in find_runs(runs)]
    from vshift.train.recalibrate import recalibrate_run

    results = {}
    for path in folders:
        rows = recalibrate_run(path, changes_of([*changes, *(sets or [])], device))
        results[str(path)] = rows
        if not as_json:
            typer.echo(escape_control(str(path)))
            write(scores_table(rows), "table", sys.stdout)
            if modes:
                write(modes_table(RunFolder(path).modes()), "table", sys.stdout)
    if as_json:
        typer.echo(json.dumps(results))


def scores_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per method: accuracy and ECE in percent; RMSEs of numbers; else losses."""
    from vshift.tables import Column, Table

    scores = {"test_accuracy": ["test %", "gain"], "test_rmse": ["RMSE", "change"]}
    key = next((key for key in scores if rows[0].get(key) is not None), "test_loss")
    heads, digits = scores.get(key, ["loss", "change"]), 2 if key == "test_accuracy" else 4
    calibration = [
        (key, head, places)
        for key, head, places in (
            ("test_nll", "NLL", 4), ("test_brier", "Brier", 4), ("test_ece", "ECE %", 2)
        )
        if any(row.get(key) is not None for row in rows)
    ]  # fmt: skip
    columns = [Column("method", is_text=True)]
    columns += [Column(head) for head in heads]
    columns += [Column(head) for _, head, _ in calibration]
    columns += [Column("shift mean"), Column("max")]
    problems = [row.get("problem") or "" for row in rows]
    columns += [Column("problem", is_text=True)] if any(problems) else []
    values: list[Any] = [row.get(key) for row in rows]
    before = values[0]
    cells = [
        [
            row["method"],
            format_number(value, digits),
            format_number(None if None in (value, before) else value - before, digits, "+"),
            *(format_number(row.get(score), places) for score, _, places in calibration),
            format_number(row.get("shift_ratio_mean"), 3),
            format_number(row.get("shift_ratio_max"), 3),
            problem,
        ][: len(columns)]
        for row, value, problem in zip(rows, values, problems, strict=True)
    ]
    return Table(columns, cells)


def modes_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The mode matrix, one row per combination."""
    from vshift.tables import Column, Table

    # Accuracy and calibration are of classes, RMSE and R² of numbers.
    keys = list(dict.fromkeys(k for row in rows for k, value in row.items() if value is not None))

    def cell(key: str, value: Any) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, float):
            return format_number(value, 2 if key in ("accuracy", "ece") else 4)
        return NONE if value is None else str(value)

    cells = [[cell(key, row.get(key)) for key in keys] for row in rows]
    return Table([Column(key) for key in keys], cells)
