"""README, documents and configs say what the code does."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from vshift.cli import app
from vshift.config import expand, load
from vshift.config.block import ACTIVATIONS, POOLS, POSITIONS
from vshift.config.load import is_base, read_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIG_PAGE = (ROOT / "docs" / "config.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "AGENTS.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
CONFIGS = [path for path in FILES if not is_base(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_is_valid(path):
    assert expand(path)


def test_every_base_is_the_base_of_a_config():
    bases = {path for path in FILES if is_base(path)}
    named = set()
    for path in FILES:
        base = read_file(path).to_python().get("base", [])
        for name in base if isinstance(base, list) else [base]:
            named.add((path.parent / name).resolve())
    assert len(bases) >= 3
    assert bases <= named


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


def test_two_ways_to_write_a_layout_are_one(tmp_path):
    block = CONFIG_PAGE.split("networks are the same:\n\n", 1)[1]
    lines = [line[4:] for line in block.splitlines() if line.startswith("    network: {name")]
    second = block.split(lines[1], 1)[1].split("\n\n", 1)[0]
    orders = []
    for text in (lines[0], lines[1] + second.replace("\n    ", "\n")):
        path = tmp_path / "a.yaml"
        path.write_text(text + "\ndata: {name: shapes}\nepochs: 1\n")
        orders.append(load(path).network.order)
    assert orders[0] == orders[1]


def test_the_optimizer_schedule_and_average_are_a_config(tmp_path):
    page = CONFIG_PAGE.split("## Optimizers, schedules, averaged weights\n\n", 1)[1]
    block = page.split("\n\n", 1)[0]
    path = tmp_path / "a.yaml"
    rest = "data: {name: shapes}\nnetwork: {name: mlp}\nepochs: 5\n"
    path.write_text("\n".join(line[4:] for line in block.splitlines()) + "\n" + rest)
    config = load(path)
    assert (config.optimizer.name, config.schedule.warmup) == ("adamw", 2)
    assert config.average.words == ["copied", "averaged", "own", "precise"]


def test_the_page_on_configs_names_every_word_and_position():
    for word in (*ACTIVATIONS, *POOLS, *POSITIONS, "gn"):
        assert f"`{word}`" in CONFIG_PAGE, word


@every_page
def test_a_page_names_only_files_that_exist(page):
    named = re.findall(
        r"`((?:vshift|configs|docs|tests|examples|benchmarks)/[\w./-]+)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


@every_page
def test_a_page_has_one_title_that_it_begins_with(page):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", page.read_text(), re.M)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    skipped = [b for a, b in pairwise(levels) if b > a + 1]
    assert not skipped, "a heading is at most one level below the one before it"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@every_page
def test_a_page_links_only_to_what_is_there(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks that begin with `vshift`, without their remarks."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^    (vshift [a-z].*)$", text, re.M)


@every_page
def test_a_pages_commands_have_these_arguments_and_options(page):
    """Each is parsed as the command line would, and not run."""
    group = typer.main.get_command(app)
    for line in commands(page):
        words = shlex.split(re.split(r" [>|] ", line)[0], comments=True)[1:]
        name = words.pop(0)
        command = group.commands[name]
        if hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(name, words)


def test_there_are_commands_to_parse():
    assert sum(len(commands(page)) for page in PAGES) > 40


def test_the_index_has_every_document():
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} == set(
        re.findall(r"\]\((\w[\w-]*\.md)\)", (ROOT / "docs" / "README.md").read_text())
    )


def test_the_page_on_comparing_names_every_column_and_view():
    from vshift.compare import COLUMNS
    from vshift.compare.paper import views
    from vshift.tables import FORMATS

    page = (ROOT / "docs" / "compare.md").read_text()
    for word in (*COLUMNS, *views(), *(form for form in FORMATS if form != "table")):
        assert f"`{word}`" in page, word


def test_the_readme_is_for_a_first_visit():
    assert len(README.split()) < 1700, "what a first visit does not need belongs in docs/"


def test_the_readme_has_no_gaps():
    assert not re.search(r"\b(DEMO_TIME|DEMO_TABLE|MANY|MEASURED)\b", README)
