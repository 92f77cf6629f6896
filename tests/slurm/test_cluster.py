"""Sweeps on a real Slurm: they must end as if nothing had happened, bit for bit.

`make slurm-test` starts a cluster of two cores on this machine for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.soak.harness import differences
from vshift.runs import RunFolder

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("VSHIFT_REQUIRE_SLURM") == "1"
EPOCHS = 5
CONFIG = f"""\
name: s
data: {{name: shapes, train: 400, test: 100, batch_size: 50}}
network:
  name: preresnet
  depth: 8
  noise: {{kind: dropout, rate: 0.3, position: before_last_bn}}
epochs: {EPOCHS}
measure: {{eval_batches: 2, explain_batches: 1}}
recalibration: {{batches: 2}}
hardware: {{device: cpu, precision: float32, threads: 1, step: eager}}
seeds: [0, 1, 2, 3]
"""


def missing() -> str:
    """Why there is no Slurm to test with; empty if there is one."""
    if not shutil.which("sbatch"):
        return "there is no sbatch"
    try:
        answer = ask("scontrol", "show", "config")
    except subprocess.SubprocessError as error:
        return f"no Slurm answers: {error}"
    own = re.search(r"^ClusterName\s*= vshift-test$", answer, re.MULTILINE)
    return "" if own else "this Slurm is not the tests' own"


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=15, check=True).stdout


WHY = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        bool(WHY) and not REQUIRED, reason=f"{WHY}; `make slurm-test` installs and starts a Slurm"
    ),
]


@pytest.fixture(autouse=True)
def _required():
    if WHY:
        pytest.fail(f"VSHIFT_REQUIRE_SLURM=1, and {WHY}", pytrace=False)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "s.yaml").write_text(CONFIG)
    yield tmp_path
    ask("scancel", "--quiet", "--name=vshift")


def sweep(study: Path, runs: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`vshift sweep s.yaml`."""
    command = [sys.executable, "-m", "vshift", "sweep", str(study / "s.yaml"), *words]
    return subprocess.run(
        [*command, "--runs-dir", str(study / runs)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(what: str, condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}\n{ask('squeue')}"
        time.sleep(0.2)


@contextmanager
def held(folder: Path):
    """The run in a folder stands still: it takes long, however fast the machine is."""
    wait_for("an epoch", lambda: (folder / "metrics.jsonl").exists())
    pid = json.loads((folder / ".owner.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def attempts(runs: Path, seed: int) -> int:
    return (runs / "s" / f"seed-{seed}.log").read_text().count("--- ")


def outputs(runs: Path) -> dict[int, str]:
    """What submitit and Slurm said, by task of the array."""
    found = {}
    for path in (runs / ".slurm").glob("*/*_log.out"):
        match = re.fullmatch(r"\d+_(\d+)_0_log\.out", path.name)
        found[int(match[1]) if match else 0] = path.read_text()
    return found


def test_four_runs_one_requeued_by_hand_and_one_stopped_by_its_time_limit(study):
    runs = study / "slurm"
    options = ["--slurm", "--jobs", "4", "--time", "10"]
    done = sweep(study, "slurm", *options)
    assert done.returncode == 0, done.stderr
    (array,) = re.findall(r"submitted 4 runs as Slurm job (\d+)", done.stderr)
    folders = [runs / "s" / f"seed-{seed}" for seed in range(4)]

    ask("scontrol", "update", f"JobId={array}_0", "TimeLimit=1")
    with held(folders[0]):
        wait_for("an epoch", (folders[1] / "metrics.jsonl").exists)
        ask("scontrol", "requeue", f"{array}_1")
        again = sweep(study, "slurm", *options)  # detach, and come back
        assert again.returncode == 0, again.stderr
        assert "submitted" not in again.stderr
        assert re.search(r"4 runs: .*running", again.stderr)
        wait_for("the warning", lambda: "Caught signal SIGUSR1" in outputs(runs).get(0, ""))

    wait_for("the requeue", lambda: "Requeued job" in outputs(runs)[0])
    ask("scontrol", "update", f"JobId={array}_0", "TimeLimit=10")

    last = sweep(study, "slurm", *options, "--wait")
    assert last.returncode == 0, last.stderr
    assert re.search(r"^s +\d.*\(n=4\)", last.stdout, re.MULTILINE)  # the comparison
    for seed in (0, 1):
        assert attempts(runs, seed) == 2
        assert RunFolder(folders[seed]).run["resumes"] == 1
        assert len(RunFolder(folders[seed]).metrics()) == EPOCHS
    # A job removes its marker after its run is done.
    wait_for("the markers", lambda: not list(runs.rglob("*.queued.json")), 30)

    local = sweep(study, "local", "--jobs", "2")
    assert local.returncode == 0, local.stderr
    for folder in folders:
        assert differences(study / "local" / "s" / folder.name, folder) == []


def test_cancelled_jobs_are_submitted_again_and_failed_runs_are_named(study):
    diverge = ["--set", "norm={kind: none}", "--set", "optimizer={learning_rate: 1e30}"]
    options = ["--slurm", "--jobs", "1", "--seed", "0", "--set", "epochs=1", *diverge]
    first = sweep(study, "slurm", *options, "--slurm-set", "begin=now+1hour")
    assert "1 run: 1 queued" in first.stderr
    assert "submitted" not in sweep(study, "slurm", *options).stderr  # Slurm knows it
    ask("scancel", "--name=vshift")
    wait_for("the job to go", lambda: not ask("squeue", "--noheader"))
    second = sweep(study, "slurm", *options, "--wait")
    assert "note: 1 run queued in Slurm jobs that are gone" in second.stderr
    assert "submitted 1 run" in second.stderr
    assert second.returncode == 1
    assert f"s seed 0: diverged, see {study / 'slurm' / 's' / 'seed-0.log'}" in second.stderr
