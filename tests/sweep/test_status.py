"""How far a run is, by its folder and by the marker beside it."""

import json
import os
import time

import pytest

from tests.sweep.test_local import another_process_in
from vshift.errors import RunError
from vshift.runs import RunFolder, lock
from vshift.runs.lock import holder
from vshift.sweep.slurm import known_jobs
from vshift.sweep.status import (
    Outcome,
    State,
    all_statuses,
    job_status,
    last_epoch,
    mark_queued,
    marker,
    outcome,
    unmark_queued,
)


@pytest.fixture
def one(bench):
    """(job, its folder, write): write(status=…) makes its run.json."""
    bench.seeds = 1
    (job,) = bench.jobs
    folder = job.path(bench.runs)

    def write(**fields):
        from vshift.config import config_hash

        folder.mkdir(parents=True, exist_ok=True)
        fields = {"config_hash": config_hash(job.config), **fields}
        (folder / "run.json").write_text(json.dumps(fields))

    return job, folder, write


def state(bench, job):
    return job_status(job, bench.runs).state


def test_states_of_a_runs_life(bench, one):
    job, folder, write = one
    assert state(bench, job) is State.new
    write(status="running")
    assert state(bench, job) is State.new
    (folder / "checkpoint.pt").write_bytes(b"")
    assert state(bench, job) is State.resume
    write(status="failed")
    assert state(bench, job) is State.failed
    write(status="diverged")
    assert state(bench, job) is State.diverged
    write(status="done")
    assert state(bench, job) is State.resume  # its summary got lost: resuming makes it anew
    (folder / "summary.json").write_text('{"test_accuracy": 1}')
    assert state(bench, job) is State.done


def test_damaged_files_are_a_failed_run(bench, one):
    job, folder, write = one
    write(status="running")
    (folder / "run.json").write_text("{")
    assert state(bench, job) is State.failed


def test_another_configs_folders_are_named_and_counted(bench):
    bench.seeds = 1
    bench.sweep()
    bench.seeds = 15
    for job in bench.jobs[1:]:
        job.path(bench.runs).mkdir(parents=True)
        (job.path(bench.runs) / "run.json").write_text('{"config_hash": "other"}')
    with pytest.raises(RunError) as error:
        all_statuses(bench.jobs, bench.runs)
    assert str(error.value).count("holds another config's run") == 10
    assert str(error.value).endswith("and 4 more runs of other configs")


def test_a_run_is_running_as_long_as_its_process_lives(bench, one):
    job, folder, _ = one
    with another_process_in(folder) as pid:
        status = job_status(job, bench.runs)
        assert status.state is State.running
        assert status.by is not None
        assert status.by.startswith(f"pid {pid} on ")
    assert (folder / lock.OWNER).exists()  # it was killed
    assert state(bench, job) is State.new


def test_an_owner_elsewhere_is_believed_until_it_was_silent_for_long(tmp_path):
    owner = {"host": "node7\x1b[31m", "machine": "another", "pid": 1, "began": 5}
    file = tmp_path / lock.OWNER
    file.write_text(json.dumps(owner))
    assert holder(tmp_path) == "pid 1 on node7\\x1b[31m"
    long_ago = time.time() - lock.SILENCE - 1
    os.utime(file, (long_ago, long_ago))
    assert holder(tmp_path) is None
    file.write_text("garbled")
    assert holder(tmp_path) == "an unknown process"
    file.unlink()
    assert holder(tmp_path) is None


def test_a_marker_says_that_a_run_is_queued_until_it_is_removed(bench, one):
    job, folder, write = one
    mark_queued(folder, "12_3")
    assert job_status(job, bench.runs).by == "12_3"
    assert state(bench, job) is State.queued
    write(status="interrupted")  # the job was stopped, and will be requeued
    assert state(bench, job) is State.queued
    unmark_queued(folder)
    unmark_queued(folder)
    assert state(bench, job) is State.new


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"job": 3}', '{"job": ""}'])
def test_a_marker_that_says_nothing_is_none(bench, one, text):
    job, folder, _ = one
    folder.parent.mkdir(parents=True)
    marker(folder).write_text(text)
    assert state(bench, job) is State.new


def test_markers_and_logs_are_no_runs(bench, one):
    """`vshift compare` must not complain of runs that have not begun."""
    from vshift.runs import find_runs

    bench.sweep()
    bench.seeds = 2
    mark_queued(bench.jobs[1].path(bench.runs), "1")
    assert len(find_runs([bench.runs])) == 1


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that answers as it is told."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(script):
        program = tmp_path / "squeue"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return answer


def test_which_jobs_slurm_still_knows(squeue):
    squeue('[ "$4" = --jobs=12,13 ] || exit 7\necho 12_0\necho 13')
    assert known_jobs(["12_0", "12_1", "13"]) == {"12_0", "13"}
    squeue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert known_jobs(["12_0"]) == set()
    squeue("echo 'Unable to contact slurm controller' >&2; exit 1")
    assert known_jobs(["12_0"]) is None
    assert known_jobs([]) == set()


def test_without_squeue_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert known_jobs(["12_0"]) is None


def test_the_last_whole_row_of_the_metrics(tmp_path):
    assert last_epoch(tmp_path) == {}
    file = tmp_path / "metrics.jsonl"
    file.write_text("")
    assert last_epoch(tmp_path) == {}
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert last_epoch(tmp_path) == {"epoch": 2}
    file.write_text("".join(f'{{"epoch": {n}, "x": "{"y" * 90}"}}\n' for n in range(5000)))
    assert last_epoch(tmp_path)["epoch"] == 4999
    file.write_text("damaged\n")
    assert last_epoch(tmp_path) == {}


def test_seeing_writes_nothing(bench, one):
    job, folder, write = one
    write(status="interrupted")
    before = sorted(path.name for path in bench.runs.rglob("*"))
    job_status(job, bench.runs)
    assert sorted(path.name for path in bench.runs.rglob("*")) == before
    assert RunFolder(folder).status == "interrupted"


def test_the_state_words_are_those_of_the_json():
    assert [str(state) for state in State][:3] == ["new", "resume", "failed"]


def test_a_run_to_be_trained_behind_a_link_is_refused_and_a_done_one_is_known(bench, one, tmp_path):
    job, folder, write = one
    write(status="done")
    (folder / "summary.json").write_text('{"test_accuracy": 1}')
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert state(bench, job) is State.done
    write(status="interrupted")
    with pytest.raises(RunError, match="leads through a link"):
        job_status(job, bench.runs)


@pytest.mark.timeout(20)
def test_pipes_in_a_run_folder_stop_nobody(bench, one):
    job, folder, write = one
    write(status="running")
    for name in ("metrics.jsonl", lock.OWNER):
        os.mkfifo(folder / name)
    assert last_epoch(folder) == {}
    assert state(bench, job) is State.running
    with pytest.raises(RunError, match="another process is training in"):
        lock.lock(folder)


@pytest.mark.parametrize(("code", "stopping", "end"), [
    (1, True, Outcome.stopped),  # a signal during an import, which becomes any error
    (130, True, Outcome.stopped),
    (-9, True, Outcome.stopped),
    (1, False, Outcome.failed),
    (-9, False, Outcome.failed),
    (2, True, Outcome.refused),
])  # fmt: skip
def test_what_ends_while_a_sweep_stops_was_stopped(one, bench, code, stopping, end):
    job, _, write = one
    write(status="interrupted")
    assert outcome(job, bench.runs, code, stopping) is end
