"""The paper's tables: which runs belong, and beside which a published value may stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factory import make_run, summary_of
from tests.rendering import render
from vshift.compare import CompareOptions, paper, table_of
from vshift.config import load
from vshift.config.schema import Config
from vshift.errors import VShiftError
from vshift.runs import find_runs
from vshift.tables import Table

NETWORKS = Path(__file__).parents[2] / "configs" / "networks"
FILES = {
    "preresnet": "preresnet164",
    "resnext": "resnext29",
    "wrn": "wrn28-10",
    "densenet": "densenet100",
}
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}


def paper_config(network: str = "preresnet", noise: Any = None, **changes: Any) -> dict[str, Any]:
    """The shipped base of one of the paper's networks, as a run saves it, with dotted changes."""
    values = load(NETWORKS / f"{FILES[network]}.yaml").model_dump(exclude={"name", "seeds"})
    values["network"]["noise"] = noise
    for key, value in changes.items():
        *path, last = key.split("__")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return values


def noise(rate: float = 0.5, position: str = "before_last_bn") -> dict[str, Any]:
    return {"kind": "dropout", "rate": rate, "position": position}


def add(runs: Path, name: str, config: dict[str, Any], accuracy: float = 91.0, n: int = 2) -> None:
    for seed in range(n):
        values = {**config, "data": {**config["data"]}}
        found = accuracy + seed / 5
        summary = summary_of(found, test_accuracy_precise=found + 2, test_accuracy_swap=found - 1)
        make_run(
            runs, name, seed, config=values, summary=summary, run={"data": config["data"]["name"]}
        )


def view(runs: Path, name: str) -> Table:
    return table_of(find_runs([runs]), CompareOptions(view=name))


def records(sheet: Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(render(sheet, "json"))
    return found


@pytest.mark.parametrize("network", FILES)
def test_the_shipped_recipes_are_the_papers(network: str) -> None:
    config = Config.model_validate({"name": "x", **paper_config(network)})
    assert paper.network_of(config) == network
    assert paper.data_of(config) == "cifar10"
    assert paper.other_recipe(config, network) == {}


def test_the_published_numbers_are_complete() -> None:
    every = paper.views()
    assert set(every) == {"figure4", "table3", "table4", "table6"}
    for table in every.values():
        for by_data in table.values.values():
            for by_network in by_data.values():
                assert set(by_network) == set(FILES)
                for values in by_network.values():
                    assert len(values) == (2 if table.adjusted else len(table.levels))
                    assert all(3.5 < value < 33 for value in values)
    assert every["table3"].published("before_last_bn", "cifar10", "preresnet") == [8.42, 6.42]
    assert every["table4"].published("before_classifier", "cifar100", "wrn")[-1] == 19.25
    assert every["figure4"].published("before_last_bn", "cifar100", "wrn") == ()


def test_figure_4_has_the_published_line_below_ours(tmp_path: Path) -> None:
    add(tmp_path, "clean", paper_config(), 95.0)
    add(tmp_path, "a", paper_config(noise=noise()), 91.5)
    add(tmp_path, "b", paper_config(noise=noise(position="before_last_conv")), 94.0)
    sheet = view(tmp_path, "figure4")
    assert [column.head for column in sheet.columns] == [
        "position", "test error of", "drop 0", "drop 0.1", "drop 0.3", "drop 0.5", "drop 0.7",
    ]  # fmt: skip
    assert sheet.rows == [
        ["(a) before last BN", "ours (n=2)", "4.90 ± 0.14", "–", "–", "8.40 ± 0.14", "–"],
        ["(a) before last BN", "Li et al. 2019", "4.91", "5.16", "5.87", "8.43", "14.51"],
        ["(b) before last conv", "ours (n=2)", "4.90 ± 0.14", "–", "–", "5.90 ± 0.14", "–"],
        ["(b) before last conv", "Li et al. 2019", "5.10", "5.06", "5.29", "5.86", "7.23"],
    ]
    assert "CVPR 2019, figure 4" in sheet.caption
    assert "All rows: network preresnet-164; data cifar10." in sheet.caption
    cell = next(
        r for r in records(sheet) if r["position"] == "before_last_bn" and r["level"] == 0.5
    )
    assert (cell["n"], cell["published"], cell["names"]) == (2, 8.43, ["a"])
    assert cell["published_in"].endswith("figure 4, read from the coordinates of its bars")
    assert "CIFAR-100" not in sheet.caption


def test_figure_4_says_that_it_has_no_bars_of_cifar100(tmp_path: Path) -> None:
    add(tmp_path, "a", paper_config(noise=noise(), data__name="cifar100"), 70.0)
    sheet = view(tmp_path, "figure4")
    assert [row[-6] for row in sheet.rows] == ["ours (n=2)"]
    assert "its bars for CIFAR-100 have not been read; table3 has them at" in sheet.caption


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"name": "imagefolder", "root": "/somewhere/cifar10"}},
        {"data": {"name": "shapes"}},
        {"data__train_limit": 10_000},
        {"data__test_limit": 2_000},
        {"network__depth": 20},
        {"network__block": "bn relu conv1x1 relu conv3x3 bn relu conv1x1"},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + str(next(iter(changes.values())))[:30],
)
def test_no_published_value_beside_other_images_or_networks(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = paper_config(noise=noise(), **changes)
    add(tmp_path, "preresnet164-cifar10", config)  # whatever it is called
    sheet = view(tmp_path, "figure4")
    assert [row[-6] for row in sheet.rows] == ["ours (n=2)"]
    assert all(record["published"] is None for record in records(sheet))
    assert "Li et al. 2019" not in render(sheet, "md")
    assert "No published values: they stand only beside" in sheet.caption


def test_other_data_is_called_by_its_own_name(tmp_path: Path) -> None:
    data = {"name": "imagefolder", "root": "/somewhere/jpeg", "train_limit": 4000}
    add(tmp_path, "a", paper_config(noise=noise(), data=data))
    add(tmp_path, "b", paper_config(noise=noise()))
    sheet = view(tmp_path, "figure4")
    labels = {row[0]: row[1] for row in sheet.rows if row[1].startswith("Li")}
    assert labels == {"cifar10": "Li et al. 2019"}
    assert {row[0] for row in sheet.rows} == {"cifar10", "imagefolder jpeg, 4,000 train"}


def test_another_recipe_is_marked_with_what_is_other(tmp_path: Path) -> None:
    config = paper_config(noise=noise(), epochs=150, optimizer__weight_decay=5e-4)
    add(tmp_path, "a", config)
    sheet = view(tmp_path, "figure4")
    assert sheet.rows[0][-6] == "ours, other recipe (n=2)"
    assert (
        "Other recipe for preresnet-164, cifar10: optimizer.weight_decay 0.0005, there 0.0001; "
        "epochs 150, there 164." in sheet.caption
    )
    assert records(sheet)[0]["other_recipe"] == ["optimizer.weight_decay", "epochs"]


def test_the_layout_counts_and_not_how_it_is_written(tmp_path: Path) -> None:
    written = {"kind": "dropout", "rate": 0.5}
    block = "bn relu conv1x1 bn relu conv3x3 noise bn relu conv1x1"
    config = paper_config(noise=written, network__block=block, network__bottleneck=True)
    add(tmp_path, "a", config)
    (ours, theirs) = view(tmp_path, "figure4").rows
    assert ours[-2] == "8.90 ± 0.14"
    assert theirs[-2] == "8.43"


def test_table_3_before_and_after_each_way_to_re_estimate(tmp_path: Path) -> None:
    cifar100 = {"name": "cifar100", "batch_size": 128}
    add(tmp_path, "a", paper_config(noise=noise()), 91.5)
    add(tmp_path, "b", paper_config(noise=noise(position="before_last_conv"), data=cifar100), 74.0)
    sheet = view(tmp_path, "table3")
    assert sheet.rows == [
        ["cifar10", "precise", "ours (n=2)", "8.40 ± 0.14", "6.40 ± 0.14", "–", "–"],
        ["cifar10", "swap", "ours (n=2)", "8.40 ± 0.14", "9.40 ± 0.14", "–", "–"],
        ["cifar10", "Adjust", "Li et al. 2019", "8.42", "6.42", "5.85", "5.77"],
        ["cifar100", "precise", "ours (n=2)", "–", "–", "25.90 ± 0.14", "23.90 ± 0.14"],
        ["cifar100", "swap", "ours (n=2)", "–", "–", "25.90 ± 0.14", "26.90 ± 0.14"],
        ["cifar100", "Adjust", "Li et al. 2019", "32.45", "26.57", "25.50", "25.20"],
    ]
    heads = [" ".join(column.head.split("\n")) for column in sheet.columns]
    assert heads[3:] == [
        "(a) drop 0.5", "(a) after recalibration", "(b) drop 0.5", "(b) after recalibration",
    ]  # fmt: skip


def test_of_two_that_trained_the_same_the_more_measured_one_is_used(tmp_path: Path) -> None:
    config = paper_config(noise=noise())
    for seed in range(2):
        make_run(tmp_path, "a", seed, 91.0, config=config)
    config = paper_config(noise=noise(), recalibration__methods=["precise", "swap"])
    add(tmp_path, "more", config, 91.0)
    sheet = view(tmp_path, "table3")
    assert [row[0] for row in sheet.rows] == ["precise", "swap", "Adjust"]
    assert any("left out: a seeds 0, 1" in note for note in sheet.notes)


def test_table_4_and_table_6(tmp_path: Path) -> None:
    add(tmp_path, "none", paper_config("wrn"), 96.0)
    add(tmp_path, "head", paper_config("wrn", noise(0.2, "before_classifier")), 96.1)
    uout = {"kind": "uniform", "beta": 0.3, "position": "before_last_conv"}
    add(tmp_path, "uout", paper_config("wrn", uout), 96.2)
    matched = {"kind": "uniform", "rate": 0.5, "position": "before_last_conv"}
    add(tmp_path, "matched", paper_config("wrn", matched), 95.0)
    pooled = noise(0.2, ["before_classifier", "before_pool"])
    add(tmp_path, "pooled", paper_config("wrn", pooled), 95.0)
    pattern = {**noise(0.2, "before_classifier"), "before": "stage1.*bn2"}
    add(tmp_path, "pattern", paper_config("wrn", pattern), 95.0)
    table4 = view(tmp_path, "table4")
    assert table4.rows == [
        ["ours (n=2)", "3.90 ± 0.14", "–", "3.80 ± 0.14", "–", "–"],
        ["Li et al. 2019", "3.97", "3.90", "4.00", "3.93", "3.84"],
    ]
    assert (
        "not in table4, having other noise or places: matched, pattern, pooled, uout"
        in table4.notes
    )
    table6 = view(tmp_path, "table6")
    assert [column.head for column in table6.columns[1:]] == [
        "β 0", "β 0.1", "β 0.2", "β 0.3", "β 0.5", "β 1.732",  # β of rate 0.5: √(3·s²), s² = 1
    ]  # fmt: skip
    assert table6.rows[0][1:] == ["3.90 ± 0.14", "–", "–", "3.70 ± 0.14", "–", "4.90 ± 0.14"]
    assert table6.rows[1][1:] == ["3.97", "3.96", "3.80", "3.90", "3.84", "–"]


def test_noise_that_is_not_a_views_is_named(tmp_path: Path) -> None:
    add(tmp_path, "a", paper_config(noise=noise()))
    add(tmp_path, "two", paper_config(noise=[noise(), noise(0.1, "after_bn")]))
    add(tmp_path, "channel", paper_config(noise={**noise(), "unit": "channel"}))
    add(tmp_path, "early", paper_config(noise={**noise(), "until": 0.3}))
    add(tmp_path, "everywhere", paper_config(noise=noise(0.5, "before_bn")))
    add(tmp_path, "gaussian", paper_config(noise={**noise(), "kind": "gaussian"}))
    sheet = view(tmp_path, "figure4")
    (note,) = sheet.notes
    assert note.endswith("having other noise or places: channel, early, everywhere, gaussian, two")
    assert {name for record in records(sheet) for name in record["names"]} == {"a"}


@pytest.mark.parametrize(
    ("name", "value"), [("hardware__precision", "float32"), ("optimizer__nesterov", True)]
)
def test_no_noise_with_other_settings_is_left_out_with_a_note(
    tmp_path: Path, name: str, value: Any
) -> None:
    add(tmp_path, "noisy", paper_config(noise=noise()))
    add(tmp_path, "clean", paper_config(**{name: value}))
    found = view(tmp_path, "figure4")
    key = name.replace("__", ".")
    assert found.notes == [
        f"not in figure4, having no noise: clean; the runs with noise differ in {key}"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("data__root", "/elsewhere"), ("checkpoint__every", 10), ("measure__eval_batches", 4)],
)
def test_no_noise_that_differs_in_nothing_of_the_training_belongs(
    tmp_path: Path, name: str, value: Any
) -> None:
    add(tmp_path, "noisy", paper_config(noise=noise()))
    add(tmp_path, "clean", paper_config(**{name: value}))
    found = view(tmp_path, "figure4")
    assert found.notes == []
    assert not any(record["other_recipe"] for record in records(found))
    assert {tuple(record["names"]) for record in records(found)} >= {("noisy",), ("clean",)}


def test_unequal_counts_repetitions_and_left_out_runs(tmp_path: Path) -> None:
    add(tmp_path, "none", paper_config(), n=3)
    add(tmp_path, "a", paper_config(noise=noise()), n=2)
    again = paper_config(noise=noise(), recalibration__moments="variance")
    add(tmp_path, "again", again, n=2)
    make_run(tmp_path, "a", 7, status="diverged", config=paper_config(noise=noise()))
    sheet = view(tmp_path, "figure4")
    assert sheet.rows[0][:2] == ["ours", "8.80 ± 0.20 (n=3)"]
    assert sheet.rows[0][4] == "8.90 ± 0.14 (n=2)"
    assert any("a seed 7: diverged" in note for note in sheet.notes)
    assert any("again seeds 0, 1: the same config and seeds are in" in note for note in sheet.notes)


def test_two_recipes_are_two_lines_told_apart_by_their_settings(tmp_path: Path) -> None:
    add(tmp_path, "long", paper_config(noise=noise()))
    add(tmp_path, "short", paper_config(noise=noise(), epochs=150))
    labels = [row[0] for row in view(tmp_path, "figure4").rows if row[1].startswith("ours")]
    assert labels == ["preresnet-164 (epochs=164)", "preresnet-164 (epochs=150)"]


def test_an_unknown_view_and_runs_that_fit_none(tmp_path: Path) -> None:
    add(tmp_path, "none", paper_config())
    with pytest.raises(VShiftError, match="did you mean `table3`"):
        view(tmp_path, "tabel3")
    with pytest.raises(VShiftError, match="none of these runs belongs there; it shows test error"):
        view(tmp_path, "figure4")


def test_runs_of_other_kinds_do_not_stop_a_view(tmp_path: Path) -> None:
    add(tmp_path, "a", paper_config(noise=noise()))
    mlp = {"data": {"name": "shapes"}, "network": {"name": "mlp", "noise": NOISE}, "epochs": 1}
    make_run(tmp_path, "mlp", config=mlp)
    make_run(tmp_path, "old", config={"data": {"name": "shapes"}, "network": {"name": "gone"}})
    (make_run(tmp_path, "damaged") / "config.yaml").write_text("[")
    sheet = view(tmp_path, "figure4")
    assert {row[0] for row in sheet.rows} == {"preresnet-164", "mlp-512-512"}
    assert any("damaged, old" in note for note in sheet.notes)
