"""SIGINT, SIGTERM and SIGUSR1: exit codes, what is left, and how soon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.soak.harness import Trainer, environment
from vshift.errors import Stopped
from vshift.train import signals

SOON = 10.0  # seconds
LONG = """
data: {name: shapes, train: 200, test: 50, batch_size: 20}
network: {name: mlp, widths: [32, 32], noise: {kind: dropout, rate: 0.5, position: before_bn}}
epochs: 20000
measure: {every: 0}
hardware: {device: cpu, precision: float32, threads: 1}
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
every_signal = pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)


def wait_for(condition, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.02)


@contextmanager
def started(trainer: Trainer, tmp_path: Path, text: str, *words: str):
    """`vshift train` on a config; gives its run folder and its messages' file."""
    (tmp_path / "long.yaml").write_text(text)
    log = tmp_path / "messages"
    log.write_text("")
    trainer.start(
        ["train", str(tmp_path / "long.yaml"), "--runs-dir", str(tmp_path / "runs"), *words], log
    )
    yield tmp_path / "runs" / "long" / "seed-0", log


def stop(trainer: Trainer, number: int) -> int:
    began = time.monotonic()
    trainer.kill(number)
    code = trainer.wait()
    assert time.monotonic() - began < SOON
    return code


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


@every_signal
def test_in_training(trainer, tmp_path, number):
    with started(trainer, tmp_path, LONG, "--set", "seeds=[0, 1]") as (folder, log):
        wait_for(lambda: (folder / "metrics.jsonl").exists(), "epoch")
        assert stop(trainer, number) == CODES[number]
    assert status(folder) == "interrupted"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert state["epoch"] == len(rows) >= 1
    assert not (folder.parent / "seed-1").exists()
    assert not (folder / ".owner.json").exists()
    text = log.read_text()
    assert "stopping after this step" in text
    assert "interrupted; repeat the command to resume from there" in text
    assert "Traceback" not in text


@every_signal
def test_in_measurements_after_the_last_epoch(trainer, tmp_path, number):
    measure = "{every: 1, eval_batches: 2, monte_carlo: 90000}"
    text = LONG.replace("{every: 0}", measure).replace("epochs: 20000", "epochs: 1")
    with started(trainer, tmp_path, text) as (folder, log):
        wait_for(lambda: (folder / "recalibration.json").exists(), "recalibration")
        assert stop(trainer, number) == CODES[number]
    assert status(folder) == "interrupted"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (0, 10)
    assert "Traceback" not in log.read_text()


@every_signal
def test_while_images_are_made(trainer, tmp_path, number):
    text = LONG.replace("train: 200", "train: 1000000")
    with started(trainer, tmp_path, text) as (folder, log):
        time.sleep(1)
        assert stop(trainer, number) == CODES[number]
    assert log.read_text() == "interrupted\n"
    assert not folder.exists()


def test_a_second_sigint_stops_at_once(trainer, tmp_path):
    """In the middle of a step of several seconds, of which nothing is kept."""
    text = LONG.replace("widths: [32, 32]", "widths: [2048, 2048]")
    text = text.replace("batch_size: 20", "batch_size: 2000").replace("train: 200", "train: 2000")
    with started(trainer, tmp_path, text) as (folder, log):
        wait_for(lambda: (folder / "run.json").exists(), "run")
        time.sleep(1.5)
        trainer.kill(signal.SIGINT)
        time.sleep(0.3)
        assert stop(trainer, signal.SIGINT) == 130
    assert status(folder) == "interrupted"
    assert "Traceback" not in log.read_text()


def test_a_run_that_was_stopped_is_done_by_the_same_command(trainer, tmp_path):
    text = LONG.replace("epochs: 20000", "epochs: 12")
    with started(trainer, tmp_path, text) as (folder, _):
        wait_for(lambda: (folder / "run.json").exists(), "run")
        code = stop(trainer, signal.SIGTERM)
    with started(trainer, tmp_path, text) as (folder, _):
        assert trainer.wait() == 0
    assert code == 143
    assert status(folder) == "done"
    assert json.loads((folder / "run.json").read_text())["resumes"] in (0, 1, None)


@contextmanager
def sweeping(tmp_path: Path, jobs: int):
    """`vshift sweep` of two long runs in a process group of its own."""
    (tmp_path / "long.yaml").write_text(LONG)
    words = ["sweep", str(tmp_path / "long.yaml"), "--set", "seeds=[0, 1]", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vshift", *words, "--runs-dir", str(tmp_path / "runs")],
        stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    try:
        yield process, [tmp_path / "runs" / "long" / f"seed-{seed}" for seed in range(2)]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_sweep_passes_sigterm_on_and_waits(tmp_path):
    with sweeping(tmp_path, jobs=2) as (process, folders):
        for folder in folders:
            wait_for((folder / "metrics.jsonl").exists, "epoch", 120)
        process.terminate()
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 143
    assert [status(folder) for folder in folders] == ["interrupted"] * 2
    assert "interrupted with 2 of 2 runs to go" in messages
    assert "Traceback" not in messages
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left


def test_ctrl_c_at_a_sweep_reaches_the_group_and_starts_nothing_more(tmp_path):
    with sweeping(tmp_path, jobs=1) as (process, folders):
        wait_for((folders[0] / "metrics.jsonl").exists, "epoch", 120)
        os.killpg(process.pid, signal.SIGINT)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 130
    assert status(folders[0]) == "interrupted"
    assert not folders[1].exists()
    assert "Traceback" not in messages


def send(number: int) -> None:
    """To this process; its handler runs before the next line."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in CODES]


def test_the_first_signal_is_told_and_a_second_sigint_raises():
    """By another thread: this one may be in the middle of a message."""
    before, calls, told = handlers(), [], []

    def tell():
        told.append(threading.current_thread() is threading.main_thread())

    with signals.catch_stop_signals(tell, then=lambda: calls.append(1)) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.exit_code == 143
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 143
        with pytest.raises(Stopped) as caught:
            send(signal.SIGINT)
    assert caught.value.exit_code == 130
    assert caught.value.at_once
    assert handlers() == before
    assert calls == [1]
    assert told == [False]


def test_outside_training_a_signal_raises_and_cleaning_up_is_left_in_peace():
    before = handlers()
    cleaned = []

    def work():
        try:
            send(signal.SIGUSR1)
        finally:
            send(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Stopped) as caught, signals.stopping_at_once():
        work()
    assert cleaned
    assert caught.value.exit_code == 143
    assert handlers() == before


def test_a_stop_that_a_library_clears_still_stops():
    """As C code does that clears every error of an import."""

    def import_half():
        with contextlib.suppress(BaseException):
            send(signal.SIGTERM)

    def fail():
        import_half()
        raise AttributeError("module 'numpy' has no attribute 'matrix'")

    def train():
        import_half()
        with signals.catch_stop_signals():
            pytest.fail("training began")

    for work in (fail, train):
        with pytest.raises(Stopped) as caught, signals.stopping_at_once():
            work()
        assert caught.value.exit_code == 143
    with signals.stopping_at_once(), signals.catch_stop_signals() as stop:
        assert not stop.requested  # the next command begins anew


def test_a_thread_leaves_the_signals_alone():
    seen = []

    def run():
        with signals.catch_stop_signals() as stop, signals.stopping_at_once():
            seen.append((handlers(), stop.requested))

    before = handlers()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
