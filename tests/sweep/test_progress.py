"""What a person sees: a table that fits the terminal, plain lines elsewhere."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.sweep.conftest import reporter
from vshift.sweep.progress import Entry, ProgressTable
from vshift.sweep.status import State
from vshift.train.signals import catch_stop_signals


@pytest.fixture
def entries(bench):
    bench.seeds = 300
    return [Entry(job, job.path(bench.runs), State.new) for job in bench.jobs]


def drawn(board: ProgressTable, width: int = 100, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False, legacy_windows=False)
    with console.capture() as text:
        console.print(board.table(height, width))
    return text.get().rstrip("\n").split("\n")


def run(entry, epoch=1, **row):
    entry.state = State.running
    entry.last = {"epoch": epoch, "test_accuracy": 45.25, "images_per_second": 1234.4,
                  "seconds": 30.0, **row}  # fmt: skip


def end(entry, state=State.done):
    entry.state, entry.ended = state, time.monotonic()


def test_a_row_says_state_epoch_accuracy_speed_and_time_left(entries):
    run(entries[0])
    lines = drawn(ProgressTable(entries[:3], 1, reporter()))
    assert lines[0].startswith("1 running, 2 waiting")
    assert lines[1].split() == ["run", "state", "epoch", "test", "images/s", "left"]
    assert lines[2].split() == [
        "s",
        "seed",
        "0",
        "running",
        "1/2",
        "error",
        "54.75",
        "%",
        "1,234",
        "30",
        "s",
    ]
    assert len(lines) == 3  # what waits is counted, not listed


@pytest.mark.parametrize(("running", "over"), [(0, 0), (4, 290), (150, 100), (300, 0), (0, 300)])
@pytest.mark.parametrize("size", [(100, 24), (40, 8), (200, 60)])
def test_with_300_runs_the_table_fits_the_terminal(entries, running, over, size):
    width, height = size
    for entry in entries[:running]:
        run(entry)
    for entry in entries[running : running + over]:
        end(entry)
    lines = drawn(ProgressTable(entries, 8, reporter()), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    shown = sum("running" in line for line in lines[2:] if "more that are" not in line)
    if shown < running:
        assert lines[-1].strip() == f"and {running - shown} more that are running"
    assert shown == running or len(lines) >= height - 4


def test_the_last_runs_that_ended_stay_visible(entries):
    for entry in entries[:9]:
        end(entry)
    end(entries[9], State.failed)
    lines = drawn(ProgressTable(entries, 8, reporter()))
    assert [line.split()[2] for line in lines[2:]] == ["5", "6", "7", "8", "9"]
    assert lines[0].startswith("9 done, 290 waiting, 1 failed")
    assert "failed" in lines[-1]


def test_names_are_no_markup(entries):
    entry = entries[0]
    object.__setattr__(entry.job.point.config, "name", "[red]x[/red]\x1b[2J")
    run(entry)
    table = ProgressTable([entry], 1, reporter())
    assert "[red]x[/red]\\x1b[2J seed 0" in drawn(table)[2]


def test_the_loss_where_nothing_is_classified(entries):
    run(entries[0], test_accuracy=None, test_loss=0.12345)
    assert "loss 0.123" in drawn(ProgressTable(entries[:1], 1, reporter()))[2]
    run(entries[0], test_accuracy=None, test_loss=0.12345, test_rmse=3.14159)
    assert "RMSE 3.14" in drawn(ProgressTable(entries[:1], 1, reporter()))[2]


def test_time_left_counts_waiting_and_running_runs_over_the_places(entries):
    board = ProgressTable(entries[:5], 2, reporter())
    assert board.seconds_left() is None  # nothing is known yet
    run(entries[0], epoch=1)
    assert board.seconds_left() == pytest.approx(150.0)  # by its speed, of 2 epochs a run
    board.estimator.add(entries[0].job.config, 60.0)
    run(entries[0], epoch=1)  # 30 s left
    run(entries[1], epoch=2)  # 0 s left
    assert board.seconds_left() == pytest.approx(120.0)  # 3 of 60 s: at 0, 30 and 60
    run(entries[2])
    entries[2].by = "pid 3 on node"  # somebody else's
    assert board.seconds_left() == pytest.approx(90.0)


def test_a_terminal_gets_a_live_table_that_reads_the_runs(bench):
    bench.seeds = 2
    entries = [Entry(job, job.path(bench.runs), State.new) for job in bench.jobs]
    said = reporter(terminal=True)
    board = ProgressTable(entries, 1, said)
    with board.live():
        entries[0].state = State.running
        entries[0].path.mkdir(parents=True)
        row = {"epoch": 1, "test_accuracy": 12.5, "images_per_second": 10.0, "seconds": 1.0}
        Path(entries[0].path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        board.refresh()
        board.settle(entries[0], State.done)
        board.settle(entries[1], State.failed, "error: why")
    text = said.console.file.getvalue()
    assert "error 87.50 %" in text
    assert "1/2" in text
    assert "[2/2] s seed 1: failed\nerror: why" in text.replace("\r", "")
    assert "seed 0: done" not in text  # its row and the comparison say so


def test_a_message_about_a_signal_stands_above_the_live_table(entries):
    said = reporter(terminal=True)
    board = ProgressTable(entries[:2], 1, said)
    with catch_stop_signals(lambda: said.say("stopping")), board.live():
        run(entries[0])
        board.refresh()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    drawn, message, redrawn = said.console.file.getvalue().partition("\x1b[2Kstopping\n")
    assert message
    assert "1 running, 1 waiting" in drawn
    assert "1 running, 1 waiting" in redrawn


def test_quiet_says_nothing(bench):
    bench.seeds = 1
    said = reporter(terminal=True)
    said.quiet = True
    entry = Entry(bench.jobs[0], bench.runs, State.new)
    board = ProgressTable([entry], 1, said)
    with board.live():
        board.refresh()
        board.settle(entry, State.done)
    assert said.console.file.getvalue() == ""
