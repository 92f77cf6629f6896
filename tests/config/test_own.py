"""Parts of one's own by reference: read without running, hashed with what they import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vshift.config import config_hash, differences, dump, expand, load, own
from vshift.config.identity import short_references
from vshift.errors import ConfigError

CONFIG = """
data: {name: shapes}
network: {name: my_model.py:MyNet, args: {width: 4}}
epochs: 1
"""
MODEL = """
print("this file was run")
import helper
from torch import nn

class MyNet(nn.Module):
    pass

class Other(nn.Module):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(CONFIG)
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text("def act():\n    from pkg import deep\n    return deep.x\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").write_text("from . import other\n")
    (tmp_path / "pkg/deep.py").write_text("x = 1\n")
    (tmp_path / "pkg/other.py").write_text("")
    (tmp_path / "unrelated.py").write_text("y = 1\n")
    return tmp_path


def problems(path: Path, *sets: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, sets)
    return list(caught.value.problems)


def test_a_file_is_read_and_never_run(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    config = load(folder / "own.yaml")
    assert config.network.name == f"{folder}/my_model.py:MyNet"
    assert capsys.readouterr() == ("", "")
    assert "my_model" not in sys.modules


def test_the_source_holds_what_the_file_imports_from_beside_it(folder: Path) -> None:
    reference = f"{folder}/my_model.py:MyNet"
    names = ["helper.py", "my_model.py", "pkg/__init__.py", "pkg/deep.py", "pkg/other.py"]
    assert list(own.sources(reference)) == names
    before = own.source_hash(reference)
    (folder / "unrelated.py").write_text("y = 2\n")
    assert own.source_hash(reference) == before
    (folder / "pkg/deep.py").write_text("x = 2\n")
    assert own.source_hash(reference) != before


def test_a_part_is_the_same_in_every_folder_and_its_source_counts(folder: Path) -> None:
    first = load(folder / "own.yaml")
    moved = folder / "elsewhere"
    moved.mkdir()
    for name in ("own.yaml", "my_model.py", "helper.py"):
        (moved / name).write_bytes((folder / name).read_bytes())
    (folder / "pkg").rename(moved / "pkg")
    second = load(moved / "own.yaml")
    assert differences(first, second) == {}
    assert config_hash(first) == config_hash(second)
    (moved / "pkg/deep.py").write_text("x = 3\n")
    third = load(moved / "own.yaml")
    assert list(differences(second, third)) == ["network.source"]
    assert config_hash(second) != config_hash(third)
    (moved / "my_model.py").rename(moved / "other.py")
    fourth = load(moved / "own.yaml", [f"network.name={moved}/other.py:MyNet"])
    assert list(differences(third, fourth)) == ["network.name"]  # whose source is another, too
    assert short_references(third.model_dump())["network"]["name"] == "my_model.py:MyNet"


def test_a_given_source_must_be_the_files(folder: Path) -> None:
    config = load(folder / "own.yaml")
    again = folder / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config
    (folder / "helper.py").write_text("")
    (line,) = problems(again)
    assert f"network.source: {folder}/my_model.py, or a file that it imports, is not what" in line
    assert line.startswith(f"{again}:")


def test_references_are_relative_to_the_file_that_says_them(folder: Path, monkeypatch) -> None:
    below = folder / "below"
    below.mkdir()
    (below / "noise.yaml").write_text("base: ../own.yaml\nnetwork: {args: {width: 9}}\n")
    assert load(below / "noise.yaml").network.name == f"{folder}/my_model.py:MyNet"
    (below / "study.yaml").write_text(
        "base: ../own.yaml\narms:\n  a: {network.name: ../my_model.py:Other}\n"
        "  b: {network: {name: ../my_model.py:MyNet}}\n"
    )
    points = expand(below / "study.yaml")
    assert [p.config.network.name.rpartition("/")[2] for p in points] == [
        "my_model.py:Other",
        "my_model.py:MyNet",
    ]
    monkeypatch.chdir(folder)
    names = "grid.network.name=[my_model.py:MyNet, my_model.py:Other]"
    assert [p.name for p in expand(below / "noise.yaml", [names])] == [
        "noise-name=my_model.py_MyNet",
        "noise-name=my_model.py_Other",
    ]
    chosen = load(below / "noise.yaml", ["network.name=my_model.py:Other"])
    assert chosen.network.name == f"{folder}/my_model.py:Other"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my_modle.py:MyNet", "there is no file {folder}/my_modle.py; did you mean `my_model.py`?"),
        ("my_model.py:MyNt", "{folder}/my_model.py has no 'MyNt'; did you mean `MyNet`?"),
        ("my_model.py:x", "{folder}/my_model.py has no 'x'; it has MyNet, Other, helper, nn"),
        ("broken.py:MyNet", "{folder}/broken.py:2: not valid Python: invalid syntax"),
        ("folder.py:MyNet", "{folder}/folder.py is no file"),
        ("pipe.py:MyNet", "{folder}/pipe.py is no file"),
        ("deep.py:MyNet", "{folder}/deep.py:1: not valid Python: too many nested parentheses"),
        ("no_such_package.module:x", "there is no module 'no_such_package' in the working folder "
         "and none is installed"),
        ("json.dekoder:x", "there is no module 'json.dekoder': 'json' has no 'dekoder'"),
        ("a b:c", "'a b:c' is not a reference; write file.py:object or package.module:object"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(name: str, problem: str, folder: Path, monkeypatch) -> None:
    (folder / "broken.py").write_text("\nclass MyNet(:\n")
    (folder / "deep.py").write_text("(" * 10_000)
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "pipe.py")
    monkeypatch.chdir(folder)
    (line,) = problems(folder / "own.yaml", f"network.name={name}")
    where = f"--set network.name={name}: network.name: "
    assert line == where + problem.format(folder=folder)


def test_names_that_only_running_would_tell_are_accepted(folder: Path) -> None:
    for text in ("from helper import *\n", "def __getattr__(name):\n    return int\n"):
        (folder / "my_model.py").write_text(text)
        load(folder / "own.yaml")
    nested = "try:\n    import x\nexcept ImportError:\n    class MyNet: pass\n"
    (folder / "my_model.py").write_text(nested)
    load(folder / "own.yaml")


def test_keys_of_a_family_are_sent_to_args(folder: Path) -> None:
    (line,) = problems(folder / "own.yaml", "network.depth=20")
    assert "network.depth: unknown key; what the object is called with goes into args: " in line


def test_noise_without_a_place_is_refused(folder: Path) -> None:
    noise = "{kind: dropout, rate: 0.3}"
    (line,) = problems(folder / "own.yaml", f"network.noise={noise}")
    assert "network.noise: noise has no place: name modules with before or after" in line
    placed = "{kind: dropout, rate: 0.3, position: before_bn}"
    (line,) = problems(folder / "own.yaml", f"network.noise=[{placed}, {noise}]")
    assert "network.noise: noise2 has no place" in line


def test_a_reference_in_the_place_of_a_section(folder: Path) -> None:
    (line,) = problems(folder / "own.yaml", "network=my_model.py:MyNet")
    assert line.endswith("is not a section of keys; write for instance {name: my_model.py:MyNet}")
