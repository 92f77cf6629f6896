"""The tables hold what the runs say, and whatever is declared with a heading."""

from __future__ import annotations

from pathlib import Path

from tests.factory import config_of, dropout, make_run, summary_of
from tests.report.study import EVIL, LAYERS
from vshift.report.study import Study, collect
from vshift.report.tables import LAYER_ROWS, configs_table, layers_table, runs_table
from vshift.runs import find_runs
from vshift.runs.schema import LAYER_COLUMNS


def test_runs_of_one_config_with_two_hashes_stand_together_everywhere(tmp_path: Path) -> None:
    config = config_of(noise=dropout(0.5))
    for seed in range(3):
        by = {"config_hash": "of-an-older-one"} if seed == 2 else {}
        make_run(tmp_path, "a", seed, 80.0 + seed, config=config, run=by)
    study = collect(find_runs([tmp_path]))
    (group,) = study.groups
    assert group.row["n"] == 3
    assert [run.seed for run in group.runs] == [0, 1, 2]
    lines = runs_table(study).lines
    assert [line.cells[2].text for line in lines] == ["done"] * 3
    assert len(study.runs) == 3


def test_what_recalibration_recovers_has_a_verdict_in_the_table(study: Study) -> None:
    table = configs_table(study)
    heads = [column.heading for column in table.columns]
    at = heads.index("recovered")
    assert heads[at : at + 3] == ["recovered", "95 % CI", "significant"]
    texts = {line.cells[0].text: [c.text for c in line.cells[at : at + 3]] for line in table.lines}
    assert texts["arm-bn-0.5"] == ["+20.02", "+19.33 to +20.70", "yes (p < 0.001)"]
    assert texts[EVIL] == ["+6.00", "–", "one seed"]
    assert "recovered by" not in heads  # all by one method, which the caption names
    assert "Recovered by recalibration (precise)," in table.caption


def test_runs_recalibrated_by_different_methods_share_no_column(tmp_path: Path) -> None:
    for name, method, error in (("a", "precise", 14.0), ("b", "batch", 12.0)):
        summary = summary_of(recalibration=method, test_error_recalibrated=error)
        make_run(tmp_path, name, summary=summary)
    table = runs_table(collect(find_runs([tmp_path])))
    heads = [column.heading for column in table.columns]
    places = [heads.index(f"after\nrecalibration\n({word})") for word in ("precise", "batch")]
    cells = [[line.cells[place].text for place in places] for line in table.lines]
    assert cells == [["14.00", "–"], ["–", "12.00"]]
    assert "after\nrecalibration" not in heads


def test_layers_have_every_column_that_is_declared_with_a_heading(tmp_path: Path) -> None:
    """A statistic that is added to `LayerRow` shows without a change here."""
    values = {key: 1.5 for key, column in LAYER_COLUMNS.items() if column.heading}
    make_run(tmp_path, layers=[{**values, "epoch": 3, "index": 0, "layer": "bn"}])
    table = layers_table(collect(find_runs([tmp_path])))
    declared = [column for column in LAYER_COLUMNS.values() if column.heading]
    assert table.columns[1:] == declared
    (line,) = table.lines
    assert [cell.text for cell in line.cells] == [
        "a", "bn", *(f"{1.5:.{column.digits}f}" for column in declared[1:])
    ]  # fmt: skip


def test_layers_are_means_over_seeds_in_forward_order(study: Study) -> None:
    table = layers_table(study)
    keys = [column.key for column in table.columns]
    lines = [line for line in table.lines if line.cells[0].text == "arm-bn-0.5"]
    assert [line.cells[1].text for line in lines][:3] == list(LAYERS)
    assert lines[1].cells[keys.index("shift_ratio")].key == 2.5
    assert len(table.lines) == 5 * 4
    assert table.lines[0].cells[0].text == "arm-none"  # the baseline comes first


def test_very_many_layers_are_those_of_the_most_shifted_configs(tmp_path: Path) -> None:
    for name, ratio in (("a", 1.1), ("b", 1.3)):
        rows = [
            {"epoch": 3, "index": i, "layer": f"l{i}", "shift_ratio": ratio}
            for i in range(LAYER_ROWS)
        ]
        config, summary = config_of(noise=dropout(0.5)), {"shift_ratio_mean": ratio}
        make_run(tmp_path, name, config=config, layers=rows,
            summary={"test_accuracy": 50.0, **summary})  # fmt: skip
    table = layers_table(collect(find_runs([tmp_path])))
    assert {line.cells[0].text for line in table.lines} == {"b"}
    assert "1 more" in table.caption
