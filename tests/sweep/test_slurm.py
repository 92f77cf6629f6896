"""What a sweep hands to Slurm, without one: options, scripts, who is submitted, and the job itself.

A real Slurm is in tests/slurm.
"""

from __future__ import annotations

import os
import pickle
import sys

import pytest

from tests.sweep.conftest import reporter
from tests.sweep.test_local import another_process_in
from vshift.errors import RunError, VShiftError
from vshift.runs import lock
from vshift.sweep import slurm
from vshift.sweep.slurm import SlurmOptions, parse_time, sbatch_parameters
from vshift.sweep.status import job_status, unmark_queued


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
    assert "note: 3 runs queued in Slurm jobs that are gone" in bench.said
    assert "submitted 3 runs as Slurm job 2" in bench.said


def test_without_squeue_the_markers_count(bench, cluster):
    submit(bench)
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert submit(bench) == ["queued"] * 3
    assert "warning: squeue does not answer" in bench.said


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
    """A requeued job must resume, not start anew each time."""
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


def test_the_lock_of_a_submitter_that_died_is_taken_over(bench, cluster):
    with another_process_in(bench.runs / ".slurm"):
        pass  # killed
    assert (bench.runs / ".slurm" / lock.OWNER).exists()
    assert submit(bench) == ["queued"] * 3
