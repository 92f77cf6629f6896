"""README and configs say what the code does."""

import json
import re
from pathlib import Path

import pytest

from vshift.config import expand, load
from vshift.config.block import ACTIVATIONS, POOLS, POSITIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_is_valid(path):
    assert expand(path)


RUNNABLE = [p for p in CONFIGS if p.parent.name != "networks"]


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_runnable_config_opens_with_command_time_and_result(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for word in ("Command:", "Expected:", "Result:"):
        assert word in text
    assert not re.search(r"\b(TIME|RESULT)\b", text)


def test_the_readmes_first_config_works(tmp_path):
    block = README.split("# mine.yaml", 1)[1].split("\n\n", 1)[0]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(line[4:] for line in block.splitlines()))
    config = load(path)
    assert config.network.noises[0].rate == 0.3
    assert config.seeds == [0, 1]


def test_the_readmes_own_network_trains(tmp_path):
    """With a network of a few lines that has the names and asks for what the text says."""
    from vshift.train.progress import Reporter
    from vshift.train.run import train_seeds

    block = README.split("# own.yaml\n", 1)[1].split("\n\n", 1)[0]
    text = "\n".join(line[4:] for line in block.splitlines())
    assert len(block.splitlines()) < 10
    (tmp_path / "own.yaml").write_text(text)
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n\n"
        "def MyNet(classes, channels, size, width):\n"
        "    model = nn.Sequential()\n"
        "    for i, inputs in enumerate([channels, width], 1):\n"
        "        model.add_module(f'conv{i}', nn.Conv2d(inputs, width, 3, padding=1))\n"
        "        model.add_module(f'bn{i}', nn.BatchNorm2d(width))\n"
        "    model.add_module('flat', nn.Flatten())\n"
        "    model.add_module('fc', nn.Linear(width * size**2, classes))\n"
        "    return model\n"
    )
    sets = ["epochs=1", "data.train=64", "data.test=20", "measure.explain_batches=2"]
    sets += ["measure.eval_batches=2", "recalibration.batches=2", "hardware.device=cpu"]
    train_seeds(load(tmp_path / "own.yaml", sets), tmp_path / "runs", False, Reporter(quiet=True))
    run = tmp_path / "runs/own/seed-0"
    assert (run / "source/my_model.py").is_file()
    rows = [json.loads(line) for line in (run / "layers.jsonl").read_text().splitlines()]
    assert [(row["layer"], row["noise_before"]) for row in rows] == [("bn1", False), ("bn2", True)]


def test_the_readmes_two_layouts_are_one(tmp_path):
    lines = [line[4:] for line in README.splitlines() if line.startswith("    network: {name")]
    second = README.split(lines[1], 1)[1].split("\n\n", 1)[0]
    orders = []
    for text in (lines[0], lines[1] + second.replace("\n    ", "\n")):
        path = tmp_path / "a.yaml"
        path.write_text(text + "\ndata: {name: shapes}\nepochs: 1\n")
        orders.append(load(path).network.order)
    assert orders[0] == orders[1]


def test_the_readmes_optimizer_schedule_and_average_are_a_config(tmp_path):
    block = README.split("### Optimizers, schedules, averaged weights\n\n", 1)[1].split("\n\n", 1)[
        0
    ]
    path = tmp_path / "a.yaml"
    rest = "data: {name: shapes}\nnetwork: {name: mlp}\nepochs: 5\n"
    path.write_text("\n".join(line[4:] for line in block.splitlines()) + "\n" + rest)
    config = load(path)
    assert (config.optimizer.name, config.schedule.warmup) == ("adamw", 2)
    assert config.average.words == ["copied", "averaged", "own", "precise"]


def test_the_readme_names_every_word_and_position():
    for word in (*ACTIVATIONS, *POOLS, *POSITIONS, "gn"):
        assert f"`{word}`" in README, word


def test_the_readme_names_only_files_that_exist():
    named = re.findall(r"`((?:vshift|configs|docs|tests)/[\w./-]+)`", README)
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_page_on_comparing_names_every_column_and_view():
    from vshift.compare import COLUMNS
    from vshift.compare.paper import views
    from vshift.tables import FORMATS

    page = (ROOT / "docs" / "compare.md").read_text()
    for word in (*COLUMNS, *views(), *(form for form in FORMATS if form != "table")):
        assert f"`{word}`" in page, word


def test_the_readme_has_no_gaps():
    assert not re.search(r"\b(DEMO_TIME|DEMO_TABLE|MANY|MEASURED)\b", README)
