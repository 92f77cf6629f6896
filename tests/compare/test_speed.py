"""Comparing takes time by the run, not by the epoch, and no memory to speak of."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.synthetic import make_runs
from vshift.runs import RunRecord, find_runs

# What 2,000 runs may take is 20 s and 2 GB; 200 of them get a quarter of the time, for start-up.
SECONDS, BYTES = 5.0, 2 * 2**30


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--by", "network.noise.rate,network.noise.position"],
        ["--rows", "network.noise.position", "--columns", "network.noise.rate"],
        ["--view", "figure4"],
        ["--where", "network.noise.rate < 0.5 and test_error < 50", "--sort", "-test_error"],
    ],
    ids=lambda options: options[0] if options else "plain",
)
def test_200_runs_in_a_quarter_of_what_2000_may_take(runs: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "vshift", "compare", str(runs), "--format", "json", *options]
    before = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        preexec_fn=limit_memory,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    took = time.perf_counter() - before
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"[")
    assert took < SECONDS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    assert make_runs(folder, configs=100, seeds=2, epochs=10, layers=50) == 200
    return folder


def test_a_comparison_reads_neither_layers_nor_metrics(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.rendering import render
    from vshift.compare import compare
    from vshift.runs import files
    from vshift.tables import FORMATS

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(files, "read_rows", refuse)
    comparison = compare(find_runs([runs]))
    assert len(comparison.rows) == 100
    for kind in FORMATS:
        assert render(comparison, kind)


def test_seeds_of_one_config_share_the_reading_of_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vshift.compare import compare

    records = find_runs([runs])
    compare(records, by=["network.noise.rate"])
    read = [record for record in records if "config" in vars(record)]
    assert isinstance(read[0], RunRecord)
    assert len(read) == 100
