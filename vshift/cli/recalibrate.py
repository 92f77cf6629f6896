"""`vshift recalibrate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperOption

from vshift.cli.options import DeviceOption, changes_of
from vshift.cli.streams import echo
from vshift.cli.usage import Command
from vshift.errors import VShiftError
from vshift.text import NONE, escape_control, format_number, join_words, suggest

if TYPE_CHECKING:
    from vshift.tables import Table


# A score → its heading and its decimals.
_HEADS = {
    "accuracy": ("accuracy %", 2),
    "error": ("error %", 2),
    "rmse": ("RMSE", 4),
    "loss": ("loss", 4),
    "r2": ("R²", 4),
    "nll": ("NLL", 4),
    "brier": ("Brier", 4),
    "ece": ("ECE %", 2),
}
_SHIFTS = ("shift_ratio_mean", "shift_ratio_max")


class RecalibrateCommand(Command):
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
        typer.Option("--method", metavar="METHOD", help="See RecalibrateCommand."),
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option("--batches", metavar="N", help="Training batches to take statistics of."),
    ] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Also write the mode matrix, modes.json.")
    ] = False,
    monte_carlo: Annotated[
        int,
        typer.Option(
            "--monte-carlo", metavar="N", help="Also test with this many passes with noise on."
        ),
    ] = 0,
    monte_carlo_bn: Annotated[
        int,
        typer.Option(
            "--monte-carlo-bn",
            metavar="N",
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
    records = find_runs(runs)
    from vshift.train.progress import Reporter
    from vshift.train.recalibrate import recalibrate_run

    reporter = Reporter()
    results: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        reporter.open(str(record.path))
        try:
            before, *others = recalibrate_run(
                record.path, changes_of([*changes, *(sets or [])], device), reporter
            )
        finally:
            reporter.stop()
        known = {key: record.summary[key] for key in _SHIFTS if key in record.summary}
        rows = [{**known, **before}, *others]
        if not as_json:
            echo("\n" * bool(results) + escape_control(str(record.path)))
            write(scores_table(rows), "table", sys.stdout)
            if modes:
                matrix = RunFolder(record.path).modes()
                echo()
                write(modes_table(matrix), "table", sys.stdout)
                echo(costs_in_words(matrix))
        results[str(record.path)] = rows
    if as_json:
        echo(json.dumps(results))


def scores_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per method: error and ECE in percent; RMSEs of numbers; else losses."""
    from vshift.runs.summary import error_of
    from vshift.tables import Column, Table

    of = next((w for w in ("accuracy", "rmse") if rows[0].get(f"test_{w}") is not None), "loss")
    key, (head, digits) = f"test_{of}", _HEADS["error" if of == "accuracy" else of]
    calibration = [
        (f"test_{score}", *_HEADS[score])
        for score in ("nll", "brier", "ece")
        if any(row.get(f"test_{score}") is not None for row in rows)
    ]
    columns = [Column("method", is_text=True)]
    columns += [Column(f"test {head}"), Column("gain" if of == "accuracy" else "change")]
    columns += [Column(head) for _, head, _ in calibration]
    columns += [Column("mean\nshift ratio"), Column("largest\nshift ratio")]
    problems = [row.get("problem") or "" for row in rows]
    columns += [Column("problem", is_text=True)] if any(problems) else []
    values: list[Any] = [row.get(key) for row in rows]
    before = values[0]
    cells = [
        [
            row["method"],
            format_number(error_of(value) if of == "accuracy" else value, digits),
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
            return format_number(value, _HEADS.get(key, (key, 4))[1])
        return NONE if value is None else str(value)

    cells = [[cell(key, row.get(key)) for key in keys] for row in rows]
    return Table([Column(_HEADS.get(key, (key,))[0]) for key in keys], cells)


def costs_in_words(rows: Sequence[dict[str, Any]]) -> str:
    """What the noise and what the statistics cost in testing, from the mode matrix."""
    from vshift.train.final import mode_summary

    costs = mode_summary(list(rows))
    if "test_noise_cost" not in costs:
        return "What the noise and the statistics cost is not known: no accuracy or R² to compare."
    noise, stale = (
        format_number(costs[f"test_{key}"], 2) for key in ("noise_cost", "recovered_precise")
    )
    unit = "" if rows[0]["accuracy"] is not None else " of 100 R²"
    return (
        f"On the test images the noise itself costs {noise} points{unit} (noise off with precise\n"
        f"statistics minus noise on with running ones), and the running statistics cost {stale} "
        "(precise minus\nrunning, noise off)."
    )
