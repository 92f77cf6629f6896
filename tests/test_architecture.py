"""Dependencies point one way: no import runs upward, and no packages import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vshift

PACKAGE = Path(vshift.__file__).parent
# From the ground up; a package may import those of lower floors, also inside functions.
FLOORS = [
    ["_version", "errors", "installed"],
    ["text"],
    ["tables", "cache"],
    ["config"],
    ["networks", "data", "runs"],
    ["shift", "kernels"],
    ["train", "compare"],
    ["sweep", "auditing", "report", "live"],
    ["integrations"],
    ["cli"],
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
# The package itself offers what users import, and `python -m vshift`.
ROOT = {"_version", "auditing", "cli", "runs"}


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] not in ("__init__", "__main__") else "vshift"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every `vshift…` module that is imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "vshift":
            yield from (f"vshift.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute here"


def edges() -> dict[tuple[str, str], set[str]]:
    """(importing package, imported package) → the files."""
    found: dict[tuple[str, str], set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
            if name.split(".")[0] == "vshift" and package_of(name) != package_of(module):
                found.setdefault((package_of(module), package_of(name)), set()).add(module)
    return found


def test_every_package_has_a_floor() -> None:
    names = {
        path.stem
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
        and path.stem not in ("__init__", "__main__")
    }
    assert names == set(FLOOR)


def test_no_import_runs_upward() -> None:
    wrong = {
        f"{importer} → {target}": sorted(files)
        for (importer, target), files in edges().items()
        if importer != "vshift" and target != "vshift" and FLOOR[importer] <= FLOOR[target]
    }
    assert wrong == {}


def test_nothing_imports_the_package_root_but_what_it_is_run_by() -> None:
    found = edges()
    importers = {importer for importer, target in found if target == "vshift"}
    assert importers <= {"cli"}
    assert {target for importer, target in found if importer == "vshift"} <= ROOT


@pytest.mark.parametrize("package", ["shift", "networks", "kernels"])
def test_the_science_knows_no_run_folders(package: str) -> None:
    targets = {target for importer, target in edges() if importer == package}
    assert targets.isdisjoint({"runs", "data", "train"})


def test_the_statistics_work_on_any_module_without_configs() -> None:
    """The names of the recalibration methods are shared with the config; nothing else is."""
    found = {
        name
        for file in (PACKAGE / "shift").rglob("*.py")
        for name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if name.startswith("vshift.config")
    }
    assert found <= {"vshift.config.recalibration"}


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines that read or write text, or what a program prints, in the locale's encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
        is_text = not any(isinstance(mode, str) and "b" in mode for mode in modes)
        opens = name == "open" and (isinstance(call.func, ast.Name) or {*modes} & {"r", "w", "a"})
        least = {"read_text": 1, "write_text": 2}.get(name, 4 if opens and is_text else 0)
        if "encoding" not in words and (len(call.args) < least or words.get("text") == "True"):
            yield call.lineno


@pytest.mark.parametrize("package", ["vshift", "benchmarks"])
def test_text_is_read_and_written_as_utf8_and_not_as_the_locale_says(package: str) -> None:
    found = {
        f"{file}:{line}"
        for file in (PACKAGE.parent / package).rglob("*.py")
        for line in without_encoding(ast.parse(file.read_text("utf-8")))
    }
    assert found == set()
