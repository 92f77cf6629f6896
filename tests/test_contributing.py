"""The recipes of CONTRIBUTING.md name files, names and commands that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL))
# Most files of the package that each addition may touch.
MOST = {
    "a kind of noise": 2,
    "a family of networks": 2,
    "a statistic of BN layers, with a column": 3,
    "an audit finding": 2,
    "a recalibration method": 2,
    "a chart of the report": 2,
}


def steps(recipe: str) -> list[str]:
    return re.findall(r"^\d\. .*?(?=^\d\. |\n\n|\Z)", recipe, re.MULTILINE | re.DOTALL)


def test_there_is_a_recipe_for_every_addition() -> None:
    assert set(RECIPES) == set(MOST)


@pytest.mark.parametrize("name", MOST)
def test_a_recipe_is_short(name: str) -> None:
    assert 1 <= len(steps(RECIPES[name])) <= MOST[name]


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:vshift|tests|docs|examples|configs)/[\w./-]*)`", TEXT)
    paths += re.findall(r"(docs/[\w-]+\.md)`", TEXT)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", MOST)
def test_every_name_stands_in_a_file_of_its_recipe(name: str) -> None:
    """`make_noise`, `LayerRow` and the like; sections of code are not looked into further."""
    recipe = RECIPES[name]
    files = [ROOT / path for path in re.findall(r"`(vshift/[\w./-]+)`", recipe)]
    sources = [path / "base.py" if path.is_dir() else path for path in files]
    source = "".join(path.read_text("utf-8") for path in sources)
    words = re.findall(r"`@?([A-Za-z_]+)(?:\([\w.]*\))?`", " ".join(steps(recipe)))
    assert [word for word in words if not re.search(rf"\b{word}\b", source)] == []


def test_the_commands_of_the_makefile_exist() -> None:
    targets = re.findall(r"make ([a-z-]+)", TEXT)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {"setup", "lint", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
