"""Pivots: every cell where it belongs, and its n, spread and difference."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from tests.rendering import render
from vshift.cli.compare import names
from vshift.compare import CompareOptions, table_of
from vshift.errors import VShiftError
from vshift.runs import find_runs
from vshift.tables import Table

RATE, POSITION = "network.noise.rate", "network.noise.position"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        make_run(tmp_path, "none", seed, 95.0 + seed)
        for rate, places in ((0.1, ["before_last_bn"]), (0.5, ["before_last_bn", "after_bn"])):
            for position in places:
                config = config_of(noise={**dropout(rate), "position": position})
                summary = summary_of(90.0 - 100 * rate + seed / 10, shift_ratio_mean=1 + rate)
                make_run(tmp_path, f"{position}-{rate}", seed, config=config, summary=summary)
    return tmp_path


def pivot(runs: Path, rows: str = POSITION, columns: str = RATE, **more: str) -> Table:
    options = CompareOptions(rows=names(rows, ""), columns=names(columns, ""), **more)
    return table_of(find_runs([runs]), options)


def test_rows_down_columns_across(runs: Path) -> None:
    sheet = pivot(runs)
    assert [column.head for column in sheet.columns] == [
        "position", "rate=none", "rate=0.1", "rate=0.5",
    ]  # fmt: skip
    assert sheet.rows == [
        ["none", "4.00 ± 1.00", "–", "–"],
        ["after_bn", "–", "–", "59.90 ± 0.10"],
        ["before_last_bn", "–", "19.90 ± 0.10", "59.90 ± 0.10"],
    ]
    assert "over n = 3 runs" in sheet.caption


def test_counts_stand_in_the_cells_where_they_differ(runs: Path) -> None:
    make_run(runs, "none", 3, status="diverged")
    make_run(runs, "none", 4, 90.0)
    sheet = pivot(runs)
    assert sheet.rows[0][1].endswith("(n=4)")
    assert sheet.rows[1][3] == "59.90 ± 0.10 (n=3)"
    assert sheet.caption.endswith("Left out: 1 run.")
    assert "none seed 3: diverged" in sheet.notes[0]


def test_any_metric_and_the_difference(runs: Path) -> None:
    assert pivot(runs, value="shift_ratio_mean").rows[2][2] == "1.100 ± 0.000"
    assert pivot(runs, value="shift_ratio_max_layer").rows[2][2] == "block2.bn1"
    sheet = pivot(runs, value="difference")
    assert sheet.rows[0][1] == "baseline"
    assert sheet.rows[2][3] == "+55.90 ± 0.58 *"
    assert "minus that of position=none rate=none, the" in sheet.caption
    with pytest.raises(VShiftError, match="there is no baseline; name one"):
        pivot(runs, value="difference", where="network.noise != null")
    with pytest.raises(VShiftError, match="did you mean `shift_ratio_mean`"):
        pivot(runs, value="shift_ratio_men")


def test_records_are_one_object_a_cell(runs: Path) -> None:
    records = json.loads(render(pivot(runs), "json"))
    assert len(records) == 4
    assert records[1] == {
        POSITION: "after_bn", RATE: 0.5, "n": 3, "test_error_mean": pytest.approx(59.9),
        "test_error_sd": pytest.approx(0.1), "seeds": [0, 1, 2], "left_out": 0,
    }  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(render(pivot(runs), "csv"))))
    assert lines[1][RATE] == "0.5"
    assert lines[0][RATE] == ""
    assert lines[1]["seeds"] == "0 1 2"


def test_several_keys_either_way(runs: Path) -> None:
    sheet = pivot(runs, f"{POSITION},network.name", "epochs,network.noise.rate")
    assert [column.head for column in sheet.columns][:3] == [
        "position", "name", "epochs=3\nrate=none",
    ]  # fmt: skip
    assert sheet.labels == 2
    assert sheet.rows[2][:2] == ["before_last_bn", "mlp"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": (RATE,)}, "a pivot has --rows and --columns"),
        ({"rows": (RATE,), "columns": (RATE,)}, "both name network.noise.rate"),
        (
            {"rows": (RATE,), "columns": (POSITION,), "by": (RATE,)},
            "--by cannot be combined with --rows",
        ),
        (
            {"rows": (RATE,), "columns": (POSITION,), "sort": RATE},
            "--sort cannot be combined with --rows",
        ),
        (
            {"value": "test_error", "metrics": ("test_loss",)},
            "--metrics cannot be combined with --value",
        ),
        ({"view": "table3", "rows": (RATE,)}, "--rows cannot be combined with --view"),
        ({"view": "table3", "baseline": "a"}, "--baseline cannot be combined with --view"),
        ({"where": "seed > 9"}, "matches none of the 12 runs"),
    ],
)
def test_options_that_do_not_go_together(runs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(VShiftError) as caught:
        table_of(find_runs([runs]), CompareOptions(**options))
    assert message in str(caught.value)


def test_a_list_without_a_name_is_refused() -> None:
    assert names("a, b,a", "--by") == ("a", "b")
    with pytest.raises(VShiftError, match="--by a,,b: a name is missing"):
        names("a,,b", "--by")


def test_where_keeps_some_and_says_how_many(runs: Path) -> None:
    sheet = table_of(
        find_runs([runs]), CompareOptions(where="network.noise.rate == 0.5 and seed < 2")
    )
    assert [row[1] for row in sheet.rows] == ["59.95 ± 0.07 (n=2)"] * 2
    assert sheet.notes[0] == "--where keeps 4 of 12 runs"
