"""What becomes of a sweep's processes when the sweep is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweep.test_local import wait_for
from vshift.runs import RunFolder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_a_sweep_that_is_killed_takes_real_runs_with_it(bench, tmp_path):
    """`vshift train` asks the kernel for a signal."""
    config = tmp_path / "s.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 1000"))
    command = [sys.executable, "-m", "vshift", "sweep", str(config), "--runs-dir", str(bench.runs)]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    folder = bench.runs / "s" / "seed-0"
    wait_for(lambda: (folder / "metrics.jsonl").exists(), 60)
    process.kill()
    process.wait()
    wait_for(lambda: RunFolder(folder).status == "interrupted", 15)
