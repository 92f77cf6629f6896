"""What a sweep hands to Slurm, without one: options, scripts, who is submitted, and the job itself.

A real Slurm is in tests/slurm.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweep.conftest import reporter
from tests.sweep.test_local import another_process_in, wait_for
from vshift.config import config_hash, dump
from vshift.errors import RunError, TrainingFailed, VShiftError
from vshift.runs import lock
from vshift.sweep import slurm
from vshift.sweep.slurm import SlurmOptions, parse_time, sbatch_parameters
from vshift.sweep.slurm_job import MOST_IDLE, SlurmTask, job_id, job_threads
from vshift.sweep.status import State, job_status, mark_queued, marker, unmark_queued


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("8:00:00", 480), ("0:0:1", 1), ("2-12", 3600), ("1-00:30", 1470),
     ("1-0:0:1", 1441), (" 5 ", 5)],
)  # fmt: skip
def test_time_limits_as_slurm_writes_them(text, expected):
    assert parse_time(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1h", "-5", "1:2:3:4", "1-", "one", "1:00\n#SBATCH"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(VShiftError, match=r"--time .*write minutes, hours:minutes:seconds"):
        parse_time(text)


def test_what_the_batch_script_says():
    found = sbatch_parameters(
        SlurmOptions(
            partition="gpu", account="lab", minutes=480, gpus=1, cpus=4, mem="8G",
            setup=("module load cuda",), sets=("qos=high", "--mail-type=END", "exclusive"),
        )
    )  # fmt: skip
    assert (found["partition"], found["account"]) == ("gpu", "lab")
    assert (found["time"], found["gpus_per_node"], found["cpus_per_task"]) == (480, 1, 4)
    assert found["setup"] == ["export SUBMITIT_PREEMPT_SIGNAL=USR1", "module load cuda"]
    assert found["additional_parameters"] == {
        "requeue": True, "signal": "USR1@120", "qos": "high", "mail_type": "END", "exclusive": True,
    }  # fmt: skip
    assert "constraint" not in found
    assert (
        sbatch_parameters(SlurmOptions(minutes=1))["additional_parameters"]["signal"] == "USR1@30"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("array=0-3", "--jobs sets how many run at a time"),
        ("signal=USR2@9", "the warning before the time limit"),
        ("mem=9G", "give --mem"),
        ("--cpus-per-task=2", "give --cpus"),
        ("no-requeue", "jobs are always put back"),
        ("=3", "write an option of sbatch as key=value"),
        ("a b=3", "write an option of sbatch as key=value"),
        ("qos=x\nrm -rf", "write an option of sbatch as key=value"),
    ],
)
def test_options_that_are_not_the_users_are_refused(text, message, bench):
    with pytest.raises(VShiftError, match=message):
        slurm.sweep(bench.jobs, bench.runs, SlurmOptions(sets=(text,)), reporter())
    assert not bench.runs.exists()


def test_a_missing_submitit_says_how_to_install_it(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(VShiftError, match=r"pip install 'vshift\[slurm\]'"):
        slurm.sweep(bench.jobs, bench.runs, SlurmOptions(), reporter())


def test_a_machine_without_slurm_says_where_to_start_it(bench, monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VShiftError, match="there is no srun here"):
        slurm.sweep(bench.jobs, bench.runs, SlurmOptions(), reporter())


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """sbatch, squeue, scontrol and srun that only keep a record; `sbatch` counts its jobs up."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    jobs = tmp_path / "jobs"
    scripts = {
        "srun": "exit 0",
        "sbatch": f'cp "$1" {tmp_path}/script.$(ls {tmp_path} | grep -c script)\n'
        f"n=$(ls {tmp_path} | grep -c script); echo $n >> {jobs}; echo Submitted batch job $n",
        "squeue": f"while read n; do for t in 0 1 2 3 4 5; do echo ${{n}}_$t; done; echo $n; "
        f"done < {jobs}",
        "scontrol": "echo MaxArraySize = 4",
    }
    for name, script in scripts.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def submit(bench, **how):
    said = reporter()
    entries = slurm.sweep(bench.jobs, bench.runs, SlurmOptions(**how), said)
    bench.said = said.console.file.getvalue()
    return [str(entry.state) for entry in entries]


def test_only_what_is_neither_done_nor_running_nor_queued_is_submitted(bench, cluster):
    bench.seeds = 1
    bench.sweep()
    bench.seeds = 4
    with another_process_in(bench.runs / "s" / "seed-1"):
        assert submit(bench) == ["done", "running", "queued", "queued"]
        assert "submitted 2 runs as Slurm job 1" in bench.said
        assert "4 runs: 1 done, 1 running, 2 queued" in bench.said
        assert submit(bench) == ["done", "running", "queued", "queued"]
        assert "submitted" not in bench.said
    assert submit(bench) == ["done", "queued", "queued", "queued"]
    script = (cluster / "script.0").read_text()
    assert "#SBATCH --array=0-1%2" in script
    assert "#SBATCH --requeue" in script
    assert "#SBATCH --signal=USR1@120" in script


def test_the_throttle_and_the_largest_array(bench, cluster):
    """Six runs, and four tasks at most in an array: two arrays share the throttle."""
    bench.seeds = 6
    assert submit(bench, jobs=2) == ["queued"] * 6
    arrays = [(cluster / f"script.{n}").read_text() for n in (0, 1)]
    assert "--array=0-3%1" in arrays[0]
    assert "--array=0-1%1" in arrays[1]
    assert [job_status(job, bench.runs).by for job in bench.jobs] == [
        "1_0", "1_1", "1_2", "1_3", "2_0", "2_1"
    ]  # fmt: skip


def test_runs_of_jobs_that_slurm_has_lost_are_submitted_again(bench, cluster):
    submit(bench)
    (cluster / "jobs").write_text("")  # scancel
    assert submit(bench) == ["queued"] * 3
    assert "3 runs were queued in Slurm jobs that are gone" in bench.said
    assert "submitted 3 runs as Slurm job 2" in bench.said


def test_without_squeue_the_markers_count(bench, cluster):
    submit(bench)
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert submit(bench) == ["queued"] * 3
    assert "squeue does not answer" in bench.said


def test_what_sbatch_refuses_is_told_in_its_words(bench, cluster):
    program = cluster / "bin" / "sbatch"
    program.write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2; exit 1\n"
    )
    with pytest.raises(VShiftError) as error:
        submit(bench, partition="x")
    assert "sbatch: error: invalid partition specified: x" in str(error.value)
    assert error.value.exit_code == 2
    assert [str(job_status(job, bench.runs).state) for job in bench.jobs] == ["new"] * 3


def test_two_processes_do_not_submit_at_the_same_time(bench, cluster):
    with (
        another_process_in(bench.runs / ".slurm") as pid,
        pytest.raises(RunError, match=f"another process is submitting runs.*pid {pid}"),
    ):
        submit(bench)
    assert submit(bench) == ["queued"] * 3


def test_fresh_removes_the_old_run_before_the_job_is_there(bench, cluster):
    """A requeued job must go on, and not begin anew each time."""
    bench.sweep()
    assert submit(bench, fresh=True) == ["queued"] * 3
    assert not list(bench.runs.rglob("summary.json"))
    task = pickle.loads(next(bench.runs.rglob("*_submitted.pkl")).read_bytes()).function
    assert "fresh" not in vars(task)


def test_a_cuda_config_needs_gpus(bench, cluster):
    bench.sets = ["hardware={device: cuda}"]
    with pytest.raises(VShiftError, match="add --gpus 1"):
        submit(bench)
    assert submit(bench, sets=("gres=gpu:1",)) == ["queued"] * 3
    assert submit(bench, gpus=1) == ["queued"] * 3


def test_waiting_ends_when_every_run_is_settled_or_lost(bench, cluster, monkeypatch):
    monkeypatch.setattr(slurm, "SQUEUE_EVERY", 0.2)

    original = slurm.Waiter.wait

    def meanwhile(waiter):
        """In the cluster seed 0 gets done, seed 1 fails, and seed 2's job vanishes."""
        bench.seeds, bench.behaviours = 2, {"s seed 1": ["refuse"]}
        bench.sweep()
        for seed in (0, 1):
            unmark_queued(bench.runs / "s" / f"seed-{seed}")
        (cluster / "jobs").write_text("")
        original(waiter)

    monkeypatch.setattr(slurm.Waiter, "wait", meanwhile)
    assert submit(bench, wait=True, grace=0.5) == ["done", "failed", "failed"]
    assert "[1/3] s seed 0: done" in bench.said
    assert "[2/3] s seed 1: failed" in bench.said
    assert "\nerror: there is no such thing\n" in bench.said
    assert "s seed 2: failed\nits Slurm job 1_2 is gone" in bench.said
    assert not list(bench.runs.rglob("*.queued.json"))


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


def test_the_lock_of_a_submitter_that_died_is_taken_over(bench, cluster):
    with another_process_in(bench.runs / ".slurm"):
        pass  # killed
    assert (bench.runs / ".slurm" / lock.OWNER).exists()
    assert submit(bench) == ["queued"] * 3
