"""What a person sees: estimates, a table that fits the terminal, plain lines elsewhere."""

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.configs import make_config
from tests.sweep.conftest import reporter
from vshift.config import dump
from vshift.sweep.progress import (
    Entry,
    ProgressTable,
    RuntimeEstimator,
    cost_key,
    dry_run,
    makespan,
)
from vshift.sweep.status import State


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


def test_configs_of_one_kind_differ_in_what_costs_no_time():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    one = make_config()
    same = make_config(
        name="b", epochs=9, optimizer={"learning_rate": 0.3}, norm={"kind": "batch", "momentum": 1},
        network={"name": "preresnet", "depth": 8, "noise": noise},
        hardware={"device": "cpu", "precision": "float32", "threads": 2},
    )  # fmt: skip
    assert cost_key(one) == cost_key(same)
    assert cost_key(one) != cost_key(make_config(network={"name": "preresnet", "depth": 20}))
    assert cost_key(one) != cost_key(
        make_config(data={"name": "shapes", "train": 400, "test": 100})
    )
    assert cost_key(one) != cost_key(
        make_config(hardware={"device": "auto", "precision": "float32"})
    )


def test_the_median_time_an_epoch_times_the_epochs():
    estimator, config = RuntimeEstimator(), make_config(epochs=2)
    assert estimator.seconds(config) is None
    assert estimator.seconds(config, guess=True) is None
    for seconds in (10.0, 12.0, 1000.0, None, 0.0):
        estimator.add(config, seconds)
    assert estimator.seconds(config) == 12.0
    assert estimator.seconds(make_config(epochs=5)) == 30.0
    other = make_config(network={"name": "mlp"})
    assert estimator.seconds(other) is None
    assert estimator.seconds(other, guess=True) == 12.0


@pytest.mark.parametrize(
    ("running", "waiting", "places", "seconds"),
    [
        ([], [], 2, 0.0),
        ([], [10, 10, 10], 1, 30.0),
        ([], [10, 10, 10], 2, 20.0),
        ([5], [10, 10], 2, 15.0),
        ([5, 7], [], 2, 7.0),
        ([5, 7, 9], [10], 2, 17.0),  # more running than places: somebody lowered --jobs
    ],
)
def test_makespan(running, waiting, places, seconds):
    assert makespan(running, waiting, places) == seconds


def test_a_dry_run_says_what_it_cannot_know(bench):
    lines, rows, total = dry_run(bench.jobs, bench.runs, 2, False)
    assert lines.splitlines() == [f"{bench.runs}/s/seed-{n}: new" for n in range(3)]
    assert [row["seconds_left"] for row in json.loads(rows)] == [None] * 3
    assert total == (
        "3 runs, 3 to do; the time of 3 of them is unknown: no finished run in this --runs-dir "
        "has their data, network and hardware"
    )
    assert not bench.runs.exists()


def test_a_dry_run_estimates_from_the_sweeps_own_runs(bench):
    bench.seeds = 1
    bench.sweep()
    run = bench.runs / "s" / "seed-0" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "seconds": 600.0}))
    bench.seeds = 4
    lines, rows, total = dry_run(bench.jobs, bench.runs, 2, False)
    assert lines.splitlines()[0].endswith("seed-0: done")
    assert lines.splitlines()[1].endswith("seed-1: new, about 10 min")
    assert json.loads(rows)[1] == {
        "name": "s", "seed": 1, "path": str(bench.runs / "s" / "seed-1"), "state": "new",
        "by": None, "epochs": 2, "seconds_left": 600.0,
    }  # fmt: skip
    assert total == "4 runs, 3 to do: about 30 min one after the other, 20 min with 2 at a time"
    assert dry_run(bench.jobs, bench.runs, 2, True)[2].startswith("4 runs, 4 to do: about 40 min")


def test_what_is_left_of_an_interrupted_run_counts(bench):
    bench.seeds = 1
    bench.sweep()
    bench.seeds = 2
    (bench.runs / "s" / "seed-1").mkdir()
    run = json.loads((bench.runs / "s" / "seed-0" / "run.json").read_text())
    (bench.runs / "s" / "seed-0" / "run.json").write_text(json.dumps({**run, "seconds": 100.0}))
    folder = bench.runs / "s" / "seed-1"
    (folder / "run.json").write_text(json.dumps({**run, "status": "interrupted", "seed": 1}))
    (folder / "checkpoint.pt").write_bytes(b"")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    lines, _, _ = dry_run(bench.jobs, bench.runs, 1, False)
    assert lines.splitlines()[1].endswith("seed-1: resume, about 50 s")


def test_other_runs_in_the_folder_tell_too(bench):
    """An earlier study of the same network, with another name and more noise."""
    config = bench.jobs[0].config.model_copy(update={"name": "earlier", "epochs": 10})
    folder = bench.runs / "earlier" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    run = {"status": "done", "seconds": 100.0, "name": "earlier", "seed": 0, "finished": "2026"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "summary.json").write_text("{}")
    damaged = bench.runs / "damaged" / "seed-0"
    damaged.mkdir(parents=True)
    (damaged / "run.json").write_text(json.dumps({**run, "name": "damaged"}))
    (damaged / "summary.json").write_text("{}")
    assert "about 20 s" in dry_run(bench.jobs, bench.runs, 1, False)[0]
