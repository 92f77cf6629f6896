"""The Makefile installs into the environment that it makes, and into no other."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path):
    """What `make -n` would do in a folder without environments, and its exit code."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / "bin"  # the PATH's own may have a vshift
    programs.mkdir()
    for name in ("make", "sh"):
        (programs / name).symlink_to(shutil.which(name))

    def run(*words):
        done = subprocess.run(
            ["make", "-n", *words], cwd=tmp_path, env={**os.environ, "PATH": str(programs)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    return run


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_without_an_environment_it_makes_one(make):
    text = make("paper")
    assert "-m venv .venv" in text
    assert "\n.venv/bin/vshift sweep " in text


@pytest.mark.parametrize("target", ["demo", "sweep", "compare", "studies", "paper"])
def test_a_vshift_that_is_there_is_used_and_nothing_is_installed(make, tmp_path, target):
    program(tmp_path / "bin" / "vshift")
    text = make(target)
    assert f"{tmp_path}/bin/vshift " in text
    program(tmp_path / ".venv" / "bin" / "vshift")
    of_venv = make(target)
    assert ".venv/bin/vshift " in of_venv
    assert "pip install" not in text + of_venv


def test_into_an_environment_of_somebody_else_it_installs_nothing(make, tmp_path):
    program(tmp_path / ".venv" / "bin" / "vshift")
    subprocess.run(["make", "setup"], cwd=tmp_path, check=False, capture_output=True)
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == ["bin"]
    assert "rm -rf .venv" in make("clean")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / ".venv" / "bin" / "vshift").is_file()
