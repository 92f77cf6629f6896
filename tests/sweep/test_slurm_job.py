"""What a Slurm job does, in this process and in one of its own, without Slurm."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweep.test_local import another_process_in, wait_for
from vshift.config import config_hash, dump
from vshift.errors import TrainingFailed
from vshift.sweep.slurm_job import MOST_IDLE, SlurmTask, job_id, job_threads
from vshift.sweep.status import State, job_status, mark_queued, marker


def test_the_threads_of_a_job_are_slurms(monkeypatch):
    monkeypatch.setattr("vshift.sweep.slurm_job.available_cores", lambda: 8)
    assert job_threads({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "6"}) == 4
    assert job_threads({"SLURM_CPUS_ON_NODE": "6"}) == 6
    assert job_threads({"SLURM_CPUS_PER_TASK": "99"}) == 8
    assert job_threads({}) == 8


def test_a_jobs_name_is_what_squeue_calls_it():
    array = {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_id(array) == "12_2"
    assert job_id({"SLURM_JOB_ID": "14"}) == "14"


@pytest.fixture
def task(bench, monkeypatch):
    """The bench's only run as a job would do it, in this process, with the stub as its command."""
    bench.seeds = 1
    (job,) = bench.jobs
    monkeypatch.setattr("vshift.sweep.slurm_job.train_command", bench.command)
    mark_queued(job.path(bench.runs), "12_0")
    before = signal.getsignal(signal.SIGTERM)
    yield SlurmTask("s", 0, dump(job.config), str(bench.runs))
    signal.signal(signal.SIGTERM, before)


def is_marked(bench):
    return marker(bench.runs / "s" / "seed-0").exists()


def test_a_job_trains_its_run_and_removes_the_marker(bench, task):
    assert task() == "done"
    assert job_status(bench.jobs[0], bench.runs).state is State.done
    assert not is_marked(bench)
    assert "attempt 1, Slurm job ? on " in (bench.runs / "s" / "seed-0.log").read_text()
    assert task() == "done"  # a job that comes back too late finds nothing to do


def test_a_job_tries_again_and_then_fails(bench, task):
    bench.behaviours = {"s seed 0": ["fail", "done"]}
    assert task() == "done"
    bench.behaviours = {"s seed 0": ["fail"]}
    mark_queued(bench.jobs[0].path(bench.runs), "12_0")
    with pytest.raises(TrainingFailed, match=r"s seed 0: failed; .*log:\nerror: it did not work"):
        task()
    assert len(bench.begun()) == 4
    assert not is_marked(bench)


def test_a_job_leaves_a_run_that_another_process_trains_to_it(bench, task):
    bench.behaviours = {"s seed 0": ["refuse"]}
    with another_process_in(bench.runs / "s" / "seed-0"):
        assert task() == "elsewhere"
    assert not is_marked(bench)


JOB = """
import signal, sys, os, pickle
from pathlib import Path
from tests.sweep.conftest import Bench
from vshift.sweep import slurm_job
bench = Bench(Path(sys.argv[1]), 1, [], __import__("json").loads(sys.argv[2]))
slurm_job.train_command = bench.command
task = pickle.loads(Path(sys.argv[1], "task").read_bytes())

def requeue(number, frame):  # what submitit does at the warning
    Path(sys.argv[1], "next").write_bytes(pickle.dumps(task.checkpoint()))
    sys.exit(255)

signal.signal(signal.SIGUSR1, requeue)
print(task())
"""


def as_job(bench, task):
    """The task in a process of its own, as submitit runs it."""
    (bench.folder / "task").write_bytes(pickle.dumps(task))
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(bench.folder), json.dumps(bench.behaviours)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_at_the_warning_a_job_stops_its_run_and_hands_itself_on(bench, task):
    pytest.importorskip("submitit")
    bench.behaviours = {"s seed 0": ["sleep:30"]}
    for idle in (1, 2):  # time limits in which the stub writes no checkpoint
        process = as_job(bench, task)
        wait_for(lambda idle=idle: len(bench.begun()) == idle)
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=20)
        assert process.returncode == 255
        assert bench.journal[-1]["what"] == "stopped"
        task = pickle.loads((bench.folder / "next").read_bytes()).function
        assert task.idle == idle
        assert is_marked(bench)
    process = as_job(bench, task)
    wait_for(lambda: len(bench.begun()) == MOST_IDLE)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert pickle.loads((bench.folder / "next").read_bytes()) is None  # submitit gives it up
    assert not is_marked(bench)
    assert "ask for more time" in (bench.runs / "s" / "seed-0.log").read_text()


def test_a_time_limit_that_brought_a_checkpoint_counts_as_none(bench, task):
    pytest.importorskip("submitit")
    bench.behaviours = {"s seed 0": ["sleep:30"]}
    task.idle = MOST_IDLE - 1
    process = as_job(bench, task)
    wait_for(lambda: bench.begun())
    (bench.runs / "s" / "seed-0").mkdir(exist_ok=True)
    (bench.runs / "s" / "seed-0" / "checkpoint.pt").write_bytes(b"new")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert pickle.loads((bench.folder / "next").read_bytes()).function.idle == 0


def test_at_sigterm_a_job_stops_its_run_and_slurm_decides(bench, task):
    bench.behaviours = {"s seed 0": ["sleep:30"]}
    process = as_job(bench, task)
    wait_for(lambda: bench.begun())
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "stopped\n")
    assert is_marked(
        bench
    )  # `scontrol requeue` brings it back; after `scancel` squeue knows better


def test_what_travels_to_the_node_needs_no_file_of_the_users(bench, task):
    """The config file may be edited or gone when the job starts."""
    hash_then = config_hash(bench.jobs[0].config)
    (bench.folder / "s.yaml").unlink()
    assert pickle.loads(pickle.dumps(task))() == "done"
    run = json.loads((bench.runs / "s" / "seed-0" / "run.json").read_text())
    assert run["config_hash"] == hash_then
