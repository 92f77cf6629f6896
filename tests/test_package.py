"""What is installed: the wheel works alone, an editable install offers the package only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import vshift

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CI = (ROOT / ".ci" / "run").read_text("utf-8")
OFFERED = ["AuditError", "VarianceProbe", "audit", "load_runs", "recalibrate"]


def build(folder: Path, version: str) -> Path:
    """A wheel of this source; `version` is hatchling's, standard or editable."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", f"wheel:{version}", "-d", folder]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


class Environment:
    """One with a wheel alone, which finds its dependencies where these tests find theirs."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin, self.elsewhere = folder / "bin", folder / "elsewhere"
        venv.create(folder, with_pip=False, symlinks=True)
        self.elsewhere.mkdir()
        site = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
        others = [path for path in sys.path if path.endswith("site-packages")]
        Path(site, "dependencies.pth").write_text("\n".join(others))  # their .pth are not read
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [self.bin / program, *words]
        return subprocess.run(
            command, cwd=self.elsewhere, env=kept, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"), "standard")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_what_its_documents_show(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vshift", f"vshift-{vshift.__version__}.dist-info"}
    assert "vshift/py.typed" in names
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20
    assert {f"vshift/{name}" for name in configs} <= set(names)


def test_the_installed_demo_runs_from_another_folder(installed: Environment) -> None:
    short = ["epochs=1", "data.train=128", "data.test=40", "recalibration.batches=2"]
    short += ["measure.explain_batches=2", "measure.eval_batches=2", "hardware.device=cpu"]
    sets = [word for text in short for word in ("--set", text)]
    done = installed.run("vshift", "sweep", "demo/no-noise", *sets, "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "no-noise" in done.stdout
    assert (installed.elsewhere / "runs/no-noise/seed-0/summary.json").is_file()
    checked = installed.run("vshift", "check", "demo", "configs/quick")
    assert checked.returncode == 0
    for folder in ("demo", "quick"):
        files = (ROOT / "configs" / folder).glob("*.yaml")
        assert all(f"{path.name}: ok" in checked.stdout for path in files)


def test_the_installed_bench_says_that_it_needs_a_clone(installed: Environment) -> None:
    done = installed.run("vshift", "bench")
    assert done.returncode == 2
    assert "come with vshift's repository" in done.stderr


def test_an_editable_install_offers_the_package_alone(tmp_path: Path) -> None:
    editable = Environment(tmp_path / "installed", build(tmp_path / "dist", "editable"))
    names = ["vshift", "tests", "benchmarks", "examples", "configs"]
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert editable.run("python", "-c", code).stdout == "['vshift']\n"
    found = editable.run("python", "-c", "import vshift; print(vshift.__file__)").stdout.strip()
    assert Path(found) == ROOT / "vshift" / "__init__.py"
    assert editable.run("vshift", "check", "quick/no-noise").returncode == 0


def test_completion_shows_what_users_need_and_imports_no_torch() -> None:
    code = "import sys, vshift, vshift.config; print(dir(vshift), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{OFFERED} False\n"
    assert all(callable(getattr(vshift, name)) for name in OFFERED)
    assert vshift.__all__ == OFFERED


# ---- versions


def requirements(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def test_the_oldest_set_is_what_pyproject_admits() -> None:
    """CI tests it; lines for what the dependencies need themselves are below a comment."""
    direct = (ROOT / "tests" / "oldest.txt").read_text("utf-8").split("\n# Indirect")[0]
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", direct, re.MULTILINE))
    extras = [name for name in PROJECT["optional-dependencies"] if name not in ("test", "dev")]
    bounds = {r.name: str(r.specifier).removeprefix(">=") for r in requirements(*extras)}
    assert pinned == bounds


def test_the_classifiers_are_the_pythons_that_ci_tests() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert named == re.findall(r"3\.\d+", re.search(r"^PYTHONS=.*", CI, re.MULTILINE)[0])
    assert PROJECT["requires-python"] == f">={named[0]}"


# ---- publishing


def test_citations_name_this_version_and_address() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    bib = (ROOT / "CITATION.bib").read_text("utf-8")
    ours, papers = re.findall(r"^@\w+\{.*?^\}$", bib, re.MULTILINE | re.DOTALL)
    (paper,) = cff["references"]
    assert cff["version"] == vshift.__version__
    assert f"version = {{{vshift.__version__}}}" in ours
    address = PROJECT["urls"]["Repository"]
    assert cff["repository-code"] == address
    assert f"url     = {{{address}}}" in ours
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    for text in (paper["title"], paper["doi"], *(a["family-names"] for a in paper["authors"])):
        assert text in papers


def test_a_release_is_tested_as_ci_tests_and_publishes_without_a_token() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    tested = {row["python"] for row in jobs["test"]["strategy"]["matrix"]["include"]}
    assert [f"Python :: {version}" for version in sorted(tested)] == [
        line.removeprefix("Programming Language :: ")
        for line in PROJECT["classifiers"]
        if line.startswith("Programming Language")
    ]
    assert set(jobs["publish"]["needs"]) == {"test", "build"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
