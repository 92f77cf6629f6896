"""configs/paper makes the runs of the paper's tables, and docs/paper.md says what they are."""

import json
import re
from pathlib import Path

import pytest

from tests.factory import make_run, summary_of
from tests.rendering import render
from vshift.compare import CompareOptions, table_of
from vshift.compare.paper import network_of, views
from vshift.config import load
from vshift.runs import find_runs
from vshift.sweep.plan import plan

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "paper"
PAGE = (ROOT / "docs" / "paper.md").read_text("utf-8")
NETWORKS = {"preresnet164": "PreResNet-164", "resnext29": "ResNeXt-29 8×64",
            "wrn28-10": "WRN-28-10", "densenet100": "DenseNet-BC-100-12"}  # fmt: skip
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
every_table = pytest.mark.parametrize("table", views())


def jobs(table: str, *sets: str):
    return plan(sorted(CONFIGS.glob(f"{table}-*.yaml")), sets)


@every_table
def test_the_runs_of_a_table_stand_beside_all_of_its_published_numbers(table, tmp_path):
    for data in DATA:
        for job in jobs(table, f"data.name={data}", "seeds=[0]"):
            values = job.config.model_dump(exclude={"name", "seeds"})
            summary = summary_of(90.0, **dict.fromkeys(
                [f"test_accuracy_{method}" for method in ("precise", "swap", "layerwise")], 91.0
            ))  # fmt: skip
            make_run(tmp_path / data, job.config.name, 0, config=values, summary=summary)
    cells = json.loads(render(table_of(find_runs([tmp_path]), CompareOptions(view=table)), "json"))
    assert all(cell["n"] == 1 and cell["other_recipe"] == [] for cell in cells)
    found = sorted(cell["published"] for cell in cells if cell["published"] is not None)
    by_data = [values for place in views()[table].values.values() for values in place.values()]
    assert found == sorted(x for values in by_data for row in values.values() for x in row)


def test_tables_share_their_runs():
    """Table 3 is a part of figure 4, and no run without noise is trained twice."""
    together = plan([CONFIGS], [])
    assert len(together) == 4 * 5 * (9 + 4 + 4)
    names = {job.config.name for job in jobs("figure4")}
    assert {job.config.name for job in jobs("table3")} < names


@every_table
@pytest.mark.parametrize("network", NETWORKS)
def test_configs_and_page_tell_the_published_numbers(table, network):
    path = CONFIGS / f"{table}-{network}.yaml"
    header = path.read_text("utf-8")
    key = network_of(load(ROOT / "configs" / "networks" / f"{network}.yaml"))
    runs = len(plan([path], []))
    assert f"Expected: {runs} runs of {plan([path], [])[0].config.epochs} epochs" in header
    for data, name in DATA.items():
        rows = [values[data][key] for values in views()[table].values.values() if data in values]
        for row in rows:
            assert all(f"{value:.2f}" in header for value in row)
        if table == "table3":
            rows = [[value for row in rows for value in row]]
        for row in rows:
            cells = " | ".join(f"{value:.2f}" for value in row)
            assert re.search(rf"^\| {NETWORKS[network]} \| {name} \|.*{re.escape(cells)} \|$",
                             PAGE, re.M)  # fmt: skip


def test_the_hours_follow_from_epochs_images_and_speed():
    rows = re.findall(r"^\| ([\w ×-]+) \| (\d+) \| ([\d,]+) \| (.+) \|$", PAGE, re.M)
    assert [row[0] for row in rows] == [*NETWORKS.values()]
    counts = [len(jobs(table)) / 4 for table in ("table3", "figure4", "table4", "table6")]
    for (_, epochs, speed, hours), network in zip(rows, NETWORKS, strict=True):
        per_run = int(epochs) * 50_000 / int(speed.replace(",", "")) / 3600
        assert int(epochs) == load(ROOT / f"configs/networks/{network}.yaml").epochs
        told = [float(text) for text in hours.split(" | ")]
        assert told == pytest.approx([per_run * n for n in (1, *counts, 85)], rel=0.07)
