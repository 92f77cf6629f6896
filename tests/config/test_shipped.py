"""Configs that come with vshift are found by name, where no file or folder has that name."""

from pathlib import Path

import pytest

from vshift.config import load
from vshift.config.shipped import find_config, shipped
from vshift.errors import ConfigError
from vshift.sweep.plan import config_files

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("quick", "quick"),
        ("configs/quick", "quick"),
        ("studies/positions", "studies/positions.yaml"),
        ("configs/studies/positions.yaml", "studies/positions.yaml"),
    ],
)
def test_names_are_found_from_any_folder(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(Path(name), name) == CONFIGS / found


def test_what_is_there_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "mine.yaml").write_text("epochs: 1\n")
    assert config_files([Path("quick")]) == [Path("quick/mine.yaml")]
    assert len(config_files([Path("demo")])) == len(list((CONFIGS / "demo").glob("*.yaml")))


def test_a_folder_of_runs_hides_nothing(tmp_path, monkeypatch):
    """As after `vshift sweep demo --runs-dir demo`, which the same command resumes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "no-noise" / "seed-0").mkdir(parents=True)
    (tmp_path / "demo" / "no-noise" / "seed-0" / "config.yaml").write_text("epochs: 1\n")
    assert len(config_files([Path("demo")])) == len(list((CONFIGS / "demo").glob("*.yaml")))


def test_a_base_may_be_one_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("base: networks/preresnet20\nepochs: 200\n")
    assert (load("a.yaml").network.depth, load("a.yaml").name) == (20, "a")
    assert load("quick/no-noise").name == "quick-no-noise"


def test_a_name_that_is_nearly_one_is_answered_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean `studies/positions`"):
        load("studies/postions")
    with pytest.raises(ConfigError, match=r"demo: a folder, not a config file"):
        load("demo")


def test_every_name_is_a_file_or_a_folder():
    assert {"demo", "quick", "studies", "networks"} <= set(shipped())
    assert all(path.exists() for path in shipped().values())
