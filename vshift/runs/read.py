"""Read run folders, however damaged: problems become sentences, never exceptions."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from vshift.errors import ConfigError, Damaged, RunError
from vshift.runs import files
from vshift.runs.files import Row
from vshift.runs.folder import CONFIG, LAYERS, METRICS, RUN, SUMMARY
from vshift.text import did_you_mean, escape_control, natural

STATUSES = ("running", "done", "failed", "diverged", "interrupted")
_SEED = re.compile(r"seed-(\d+)")
_DEPTH = 4  # <study>/<name>/seed-<n> under a folder of runs dirs; deeper lie other people's files
_LARGEST_CONFIG = 2**20  # bytes
T = TypeVar("T")


@dataclass(frozen=True)
class RunRecord:
    """One run as found on disk; config, metrics and layers are read when first used."""

    path: Path
    name: str
    seed: int
    status: str
    run: Row
    summary: Row
    problems: list[str] = field(default_factory=list)

    @cached_property
    def config(self) -> Row:
        """The config as `vshift train` reads it, with its YAML 1.2 and its limits."""
        return self._read(lambda: _read_config(self.path / CONFIG), {})

    @cached_property
    def metrics(self) -> list[Row]:
        """One row per epoch."""
        return self._read(lambda: files.read_rows(self.path / METRICS), [])

    @cached_property
    def layers(self) -> list[Row]:
        """One row per measured epoch and BN layer."""
        return self._read(lambda: files.read_rows(self.path / LAYERS), [])

    @property
    def config_hash(self) -> str | None:
        value = self.run.get("config_hash")
        return value if isinstance(value, str) and value else None

    def _read(self, reader: Callable[[], T], otherwise: T) -> T:
        try:
            return reader()
        except RunError as error:
            self.problems.append(str(error))
            return otherwise


def read_run(path: Path | str) -> RunRecord:
    """Read the run in a folder; `status` is `damaged` if run.json has none."""
    path = Path(path)
    problems: list[str] = []
    run = _read_object(path / RUN, problems)
    status = run.get("status")
    if run and status not in STATUSES:
        problems.append(f"{path / RUN}: status {status!r} is not one of {', '.join(STATUSES)}")
    status = status if status in STATUSES else "damaged"
    summary = _read_object(path / SUMMARY, problems, wanted=status == "done")
    name, seed = _identity(path, run, problems)
    return RunRecord(path, name, seed, status, run, summary, problems)


def _read_object(path: Path, problems: list[str], wanted: bool = True) -> Row:
    try:
        value = files.read_json(path)
    except RunError as error:
        problems.append(str(error))
        return {}
    if value is None and wanted:
        problems.append(f"{path} is missing")
    return value or {}


def _identity(path: Path, run: Row, problems: list[str]) -> tuple[str, int]:
    """Name and seed from run.json, else from the folders' names."""
    folder = path.absolute()
    match = _SEED.fullmatch(folder.name)
    name, seed = run.get("name"), run.get("seed")
    if not isinstance(name, str) or not name:
        name = folder.parent.name if match else folder.name
        if run:
            problems.append(f"{path / RUN} has no name; using the folder's: {name}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        seed = int(match[1]) if match else -1
        if run:
            problems.append(f"{path / RUN} has no seed; using the folder's: {seed}")
    return name, seed


def _read_config(path: Path) -> Row:
    from vshift.config.identity import short_references, upgrade
    from vshift.config.yaml12 import parse

    data = files.read_bytes(path, _LARGEST_CONFIG)
    if data is None:
        raise RunError(f"{path} is missing")
    try:
        value = parse(data.decode(), escape_control(path.name)).to_python()
    except (UnicodeDecodeError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise Damaged(f"{path} is damaged: {reason[:200]}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} is damaged: it holds no keys")
    row: Row = short_references(upgrade(value))
    return row


def find_runs(folders: Iterable[Path | str]) -> list[RunRecord]:
    """Find the runs in runs dirs, name folders or single run folders, sorted by name and seed.

    Raises:
        RunError: a folder is missing, is a file, or holds no run.
    """
    paths_by_target: dict[Path, Path] = {}
    for folder in map(Path, folders):
        with files.explained(folder, "read"):
            if not folder.is_dir():
                if folder.exists():
                    raise RunError(f"{folder} is a file; name the folder that holds it")
                parent = folder.absolute().parent
                siblings = (
                    [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
                )
                hint = did_you_mean(folder.name, siblings)
                raise RunError(f"there is no folder {folder}" + (f"; {hint}" if hint else ""))
        paths = list(_walk(folder))
        if not paths:
            raise RunError(
                f"no runs in {folder}; `vshift train` writes them to "
                f"<runs-dir>/<name>/seed-<n>/, each with a {RUN}"
            )
        for path in paths:
            paths_by_target.setdefault(path.resolve(), path)
    records = [read_run(path) for path in paths_by_target.values()]
    return sorted(records, key=lambda record: (natural(record.name), record.seed))


def _walk(top: Path) -> Iterator[Path]:
    """Yield the run folders in and under a folder, those above first.

    One that may not be listed counts as empty. A folder is looked into once, however many links
    lead to it: links to a folder above would multiply.
    """
    seen, level = set[tuple[int, int]](), [top]
    for depth in range(_DEPTH + 1):
        inside: list[Path] = []
        for folder in level:
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                if _SEED.fullmatch(folder.absolute().name) or os.path.isfile(folder / RUN):
                    yield folder
                elif depth < _DEPTH:
                    with os.scandir(folder) as entries:
                        inside += [
                            folder / e.name
                            for e in entries
                            if not e.name.startswith(".") and e.is_dir()
                        ]
            except OSError:
                continue
        level = inside


def number(value: Any) -> float | None:
    """A finite number from JSON; None for anything else, also for true, 1e999 and 10**400."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None
