"""A sweep on one machine: what it starts, what it leaves alone, what it does about failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vshift.errors import DataError, Interrupted, RunError, Stopped, TrainingFailed
from vshift.sweep.logs import log_path
from vshift.sweep.progress import raise_if_failed


def states(entries):
    return {label: str(entry.state) for label, entry in entries.items()}


def test_every_run_is_made_once_and_then_left_alone(bench):
    assert states(bench.sweep()) == dict.fromkeys(["seed 0", "seed 1", "seed 2"], "done")
    assert sorted(bench.begun()) == ["seed 0", "seed 1", "seed 2"]
    assert "3 runs: 3 waiting" in bench.said
    bench.seeds = 4
    bench.sweep()
    assert bench.begun()[3:] == ["seed 3"]
    assert "4 runs: 3 done, 1 waiting" in bench.said


def test_one_plain_line_a_run_without_a_terminal(bench):
    bench.sweep(jobs=1)
    _, *lines = bench.said.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"[{n + 1}/3] s seed {n}" for n in range(3)]
    assert all("done after" in line and "test error 50.00 %" in line for line in lines)
    assert "about" in lines[0]
    assert "left" in lines[0]
    assert "left" not in lines[-1]


def test_a_failed_run_is_tried_once_more_behind_the_others(bench):
    bench.behaviours = {"s seed 0": ["fail", "done"]}
    assert states(bench.sweep(jobs=1))["seed 0"] == "done"
    assert bench.begun() == ["seed 0", "seed 1", "seed 2", "seed 0"]
    assert (
        "warning: s seed 0: failed (exit code 1), it will be retried\nerror: it did not work\n"
        in bench.said
    )


def test_after_its_last_attempt_a_failed_run_is_named_with_its_log(bench):
    bench.behaviours = {"s seed 1": ["fail"]}
    entries = bench.sweep(retries=2)
    assert states(entries) == {"seed 0": "done", "seed 1": "failed", "seed 2": "done"}
    assert bench.begun().count("seed 1") == 3
    log = bench.runs / "s" / "seed-1.log"
    with pytest.raises(TrainingFailed) as failure:
        raise_if_failed(list(entries.values()))
    assert str(failure.value) == f"1 of 3 runs failed:\n  s seed 1: see {log}"
    assert log.read_text().count("error: it did not work") == 3
    # Another sweep tries it again: whatever was wrong may have been mended.
    bench.behaviours = {}
    assert states(bench.sweep())["seed 1"] == "done"


@pytest.mark.parametrize(("behaviour", "state"), [("refuse", "failed"), ("diverge", "diverged")])
def test_what_would_end_the_same_way_is_not_tried_again(bench, behaviour, state):
    bench.seeds, bench.behaviours = 1, {"s seed 0": [behaviour]}
    entries = bench.sweep()
    assert states(entries) == {"seed 0": state}
    assert bench.begun() == ["seed 0"]
    with pytest.raises(TrainingFailed, match="1 of 1 run failed"):
        raise_if_failed(list(entries.values()))


def test_fail_fast_stops_the_other_runs_and_the_same_sweep_resumes_them(bench):
    bench.seeds = 4
    bench.behaviours = {"s seed 0": ["sleep:60", "done"], "s seed 1": ["fail", "done"]}
    entries = bench.sweep(jobs=2, fail_fast=True)
    assert sorted(bench.begun()) == ["seed 0", "seed 1"]  # without a retry, and nothing after it
    assert states(entries) == {
        "seed 0": "resume", "seed 1": "failed", "seed 2": "new", "seed 3": "new"
    }  # fmt: skip
    assert [row["what"] for row in bench.journal if row["label"] == "s seed 0"] == [
        "begin", "stopped"
    ]  # fmt: skip
    assert "stopped at the first failure, with 3 of 4 runs to go" in bench.said
    assert set(states(bench.sweep(fail_fast=True)).values()) == {"done"}


def test_a_process_that_is_killed_is_tried_again(bench):
    bench.behaviours = {"s seed 0": ["kill", "done"]}
    assert states(bench.sweep())["seed 0"] == "done"
    assert "killed by signal 9, perhaps for its memory" in bench.said


def test_a_command_that_ends_well_without_a_result_has_failed(bench):
    bench.seeds = 1
    bench.command = lambda config, seed, runs: [sys.executable, "-S", "-c", "print('hello')"]
    entries = bench.sweep(retries=0)
    assert states(entries) == {"seed 0": "failed"}
    assert entries["seed 0"].fault == "hello"


def test_never_more_runs_at_a_time_than_asked_for(bench):
    bench.seeds = 5
    bench.behaviours = {f"s seed {n}": ["sleep:0.3"] for n in range(5)}
    bench.sweep(jobs=2)
    most = now = 0
    for row in sorted(bench.journal, key=lambda row: row["time"]):
        now += {"begin": 1, "end": -1}[row["what"]]
        most = max(most, now)
    assert most == 2


def test_gpus_are_handed_out_and_come_back(bench, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5a5a")
    bench.seeds, bench.sets = 6, ["hardware={device: auto}"]
    bench.behaviours = {f"s seed {n}": ["sleep:0.3"] for n in range(6)}
    bench.sweep(jobs=None)
    used: dict[str, int] = {}
    for row in sorted(bench.journal, key=lambda row: row["time"]):
        gpu = row["CUDA_VISIBLE_DEVICES"]
        used[gpu] = used.get(gpu, 0) + {"begin": 1, "end": -1}[row["what"]]
        assert used[gpu] in (0, 1), f"two runs on GPU {gpu}"
    assert set(used) == {"4", "GPU-5a5a"}
    assert "GPU " in log_path(bench.runs / "s" / "seed-0").read_text()


def test_runs_share_a_gpu_only_if_asked_to(bench, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    bench.sets = ["hardware={device: auto}"]
    bench.behaviours = {f"s seed {n}": ["sleep:0.4"] for n in range(3)}
    bench.sweep(jobs=3)
    assert "1 GPU for 3 runs at a time: 1 run at a time; --jobs-per-gpu 3 lets" in bench.said
    assert [row["what"] for row in bench.journal] == ["begin", "end"] * 3
    bench.sweep(jobs=None, jobs_per_gpu=3, fresh=True)
    assert [row["what"] for row in bench.journal[6:]] == ["begin"] * 3 + ["end"] * 3
    assert {row["CUDA_VISIBLE_DEVICES"] for row in bench.journal} == {"7"}


def test_cores_are_shared_out(bench, monkeypatch):
    monkeypatch.setattr("vshift.sweep.slots.available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bench.sweep(jobs=3)
    assert {row["OMP_NUM_THREADS"] for row in bench.journal} == {"2"}


def test_threads_that_do_not_fit_are_said(bench, monkeypatch):
    monkeypatch.setattr("vshift.sweep.slots.available_cores", lambda: 2)
    bench.sets = ["hardware.threads=2"]
    bench.sweep(jobs=3)
    assert "3 runs at a time on 2 processor cores slow each other down" in bench.said
    assert "hardware.threads: 2 in 3 runs at a time on 2 processor cores" in bench.said


def test_runs_of_another_process_are_left_to_it_and_named(bench):
    with another_process_in(bench.runs / "s" / "seed-1") as pid:
        entries = bench.sweep()
        assert states(entries) == {"seed 0": "done", "seed 1": "running", "seed 2": "done"}
        assert f"s seed 1: skipped, pid {pid} on " in bench.said
        assert "seed 1" not in bench.begun()
        raise_if_failed(list(entries.values()))  # it has not failed


def test_wait_stays_and_takes_over_what_the_other_process_leaves(bench):
    with another_process_in(bench.runs / "s" / "seed-1", seconds=3):
        assert states(bench.sweep(wait=True))["seed 1"] == "done"
    assert bench.begun()[-1] == "seed 1"


def another_process_in(folder, seconds=60.0):
    """A real process that holds a run folder; a context manager that gives its pid."""
    folder.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from vshift.runs import lock\n"
        "lock.lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(float(sys.argv[2]))\n"
        "lock.release(Path(sys.argv[1]))"
    )
    return Other([sys.executable, "-c", code, str(folder), str(seconds)])


class Other:
    def __init__(self, command):
        self.command = command

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"
        return self.process.pid

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def test_fresh_replaces_runs_but_not_at_a_second_attempt(bench):
    bench.sweep()
    kept = bench.runs / "s" / "seed-0" / "mine.txt"
    kept.write_text("not a run's file")
    (bench.runs / "s" / "seed-0" / "modes.json").write_text("{}")
    bench.behaviours = {"s seed 0": ["done", "fail", "done"]}
    bench.sweep(fresh=True, jobs=1)
    assert bench.begun()[3:] == ["seed 0", "seed 1", "seed 2", "seed 0"]
    assert kept.exists()
    assert not (bench.runs / "s" / "seed-0" / "modes.json").exists()


def test_a_config_that_is_edited_meanwhile_changes_nothing(bench):
    """Children start hours after the plan; what they train is what was planned."""
    bench.seeds, seen = 2, []
    path, original = bench.folder / "s.yaml", bench.command

    def command(config, seed, runs):
        path.write_text(path.read_text().replace("epochs: 2", "epochs: 99"))
        seen.append(Path(config).read_text())
        return original(config, seed, runs)

    bench.command = command
    bench.sweep(jobs=1)
    assert len(seen) == 2
    assert all("\nepochs: 2\n" in text for text in seen)


def test_folders_of_other_configs_stop_the_sweep_before_it_starts(bench):
    bench.sweep()
    bench.sets = ["epochs=3"]
    with pytest.raises(RunError, match="holds another config's run"):
        bench.sweep()
    assert len(bench.begun()) == 3


def test_damaged_files_of_one_run_do_not_stop_the_others(bench):
    (bench.runs / "s" / "seed-1").mkdir(parents=True)
    (bench.runs / "s" / "seed-1" / "run.json").write_text("{torn")
    bench.behaviours = {"s seed 1": ["refuse"]}  # as `vshift train` does
    assert states(bench.sweep()) == {"seed 0": "done", "seed 1": "failed", "seed 2": "done"}


def test_missing_images_are_one_error_and_nothing_starts(bench):
    bench.sets = ["data={name: imagefolder, root: nowhere}"]
    with pytest.raises(DataError) as error:
        bench.sweep()
    assert str(error.value).count("there is no folder") == 1
    assert not bench.begun()
    assert not bench.runs.exists()


def test_images_of_runs_that_are_done_need_not_be_there(bench, tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "images" / part / name).mkdir(parents=True)
            image = tmp_path / "images" / part / name / "0.ppm"
            image.write_bytes(b"P6 8 8 255\n" + bytes(8 * 8 * 3))
    bench.sets = [f"data={{name: imagefolder, root: {tmp_path / 'images'}}}"]
    bench.sweep()
    (tmp_path / "images").rename(tmp_path / "away")
    assert states(bench.sweep())["seed 0"] == "done"


def test_a_runs_dir_that_cannot_be_made_is_one_error(bench):
    bench.runs.write_text("a file")
    with pytest.raises(RunError, match="a file is where a folder should be"):
        bench.sweep()
    assert not bench.begun()


def sweeping(bench, *extra):
    """The bench's sweep in a process of its own."""
    code = (
        "import sys, json; from pathlib import Path; from tests.sweep.conftest import Bench\n"
        "bench = Bench(Path(sys.argv[1]), int(sys.argv[2]), [], json.loads(sys.argv[3]))\n"
        "from vshift.errors import VShiftError; from vshift.train.signals import stopping_at_once\n"
        "try:\n bench.sweep(jobs=2)\nexcept VShiftError as e:\n print(e); sys.exit(e.exit_code)\n"
    )
    words = [sys.executable, "-c", code, str(bench.folder), str(bench.seeds)]
    return subprocess.Popen(
        [*words, json.dumps(bench.behaviours)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_a_signal_stops_the_runs_and_the_same_sweep_resumes_them(bench):
    bench.seeds, bench.behaviours = 3, {f"s seed {n}": ["sleep:30", "done"] for n in range(3)}
    process = sweeping(bench)
    wait_for(lambda: len(bench.begun()) == 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=15)
    assert process.returncode == 143
    assert "interrupted with 3 of 3 runs to go; the same command resumes them" in out
    assert [row["what"] for row in bench.journal] == ["begin", "begin", "stopped", "stopped"]
    bench.behaviours = {}
    (bench.runs / "s" / "seed-1" / "checkpoint.pt").touch()
    assert set(states(bench.sweep()).values()) == {"done"}
    assert bench.said.startswith("3 runs: 1 to resume, 2 waiting\n")


@pytest.mark.parametrize(("presses", "error"), [(1, Interrupted), (9, Stopped)])
def test_ctrl_c_waits_for_the_runs_and_a_second_one_does_not(bench, monkeypatch, presses, error):
    bench.seeds, bench.behaviours = 1, {"s seed 0": ["sleep:30"]}
    pressed = []

    def interrupt(*_):
        if bench.begun() and len(pressed) < presses:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("vshift.sweep.progress.ProgressTable.refresh", interrupt)
    with pytest.raises(error) as stopped:
        bench.sweep()
    assert stopped.value.exit_code == 130
    assert len(pressed) == min(presses, 2)
