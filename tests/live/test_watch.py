"""What `vshift watch` says of runs in every state, in every width, and how it is left."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tests.factory import config_of, make_run
from vshift.errors import RunError
from vshift.live.watch import RunSnapshot, Watcher, display, snapshot, to_table, watch
from vshift.runs import read_run
from vshift.tables import render


def metrics(epochs: int, seconds: float = 10.0) -> list[dict[str, Any]]:
    return [
        {"epoch": e, "test_accuracy": 40.0 + e, "test_loss": 1.0, "seconds": seconds,
         "images_per_second": 250.4}
        for e in range(1, epochs + 1)
    ]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    layers = [{"epoch": e, "index": i, "layer": "l", "shift_ratio": e + i / 10}
        for e in (1, 2) for i in (0, 2)]  # fmt: skip
    make_run(folder, "done", metrics=metrics(3), config=config_of(epochs=3))
    make_run(folder, "going", 1, status="running", metrics=metrics(2), layers=layers,
        config=config_of(epochs=12))  # fmt: skip
    make_run(folder, "broken", status="failed", config=config_of(epochs=3))
    return folder


def cells(run: RunSnapshot) -> dict[str, str]:
    """Heading → text of a run's row."""
    table = to_table([run])
    return {c.head: text for c, text in zip(table.columns, table.rows[0], strict=True)}


def test_a_running_run(runs: Path) -> None:
    path = runs / "going" / "seed-1"
    now = max(p.stat().st_mtime for p in path.iterdir()) + 4
    seen = snapshot(read_run(path), now)
    assert (seen.name, seen.seed, seen.status) == ("going", 1, "running")
    assert (seen.epoch, seen.epochs, cells(seen)["test"]) == (2, 12, "error 58.00 %")
    assert seen.shift == pytest.approx(2.1)  # of the last measured epoch, mean over layers
    assert seen.left == pytest.approx(96.0)  # 10 epochs of 10 s, of which 4 s are over
    assert seen.age == pytest.approx(4.0)
    assert list(cells(seen).values()) == [
        "going seed 1", "running", "2/12", "error 58.00 %", "2.100", "250", "2 min", "4 s"
    ]  # fmt: skip


def test_a_run_that_stopped_writing_is_silent(runs: Path) -> None:
    path = runs / "going" / "seed-1"
    newest = max(p.stat().st_mtime for p in path.iterdir())
    assert snapshot(read_run(path), newest + 59).status == "running"
    silent = snapshot(read_run(path), newest + 61)
    assert (silent.status, silent.left) == ("silent", None)
    # Slow epochs are given their time.
    (path / "metrics.jsonl").write_text(json.dumps(metrics(1, 600.0)[0]) + "\n")
    assert snapshot(read_run(path), time.time() + 1700).status == "running"


def test_a_run_that_has_no_epoch_yet(tmp_path: Path) -> None:
    path = make_run(tmp_path, status="running", config=config_of(epochs=5))
    row = cells(snapshot(read_run(path), time.time()))
    assert row["epoch"] == "0/5"
    assert row["left"] == row["test"] == row["mean\nshift ratio"] == "–"


def test_where_nothing_is_classified_the_loss_is_shown(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "test_accuracy": None, "test_loss": 0.25}]
    seen = snapshot(read_run(make_run(tmp_path, metrics=rows)), time.time())
    assert cells(seen)["test"] == "loss 0.25"
    rows[0]["test_rmse"] = 3.1
    seen = snapshot(read_run(make_run(tmp_path, "numbers", metrics=rows)), time.time())
    assert cells(seen)["test"] == "RMSE 3.1"


def test_what_needs_an_eye_comes_first_and_done_runs_are_read_once(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher([runs])
    assert [seen.name for seen in watcher.look()] == ["going", "broken", "done"]
    read: list[str] = []
    from vshift.live import watch as module

    whole = module.snapshot
    monkeypatch.setattr(
        module, "snapshot", lambda run, now: (read.append(run.name), whole(run, now))[1]
    )
    watcher.look()
    assert sorted(read) == ["broken", "going"]


def test_new_runs_turn_up_and_an_empty_folder_waits(tmp_path: Path) -> None:
    watcher = Watcher([tmp_path])
    assert watcher.look() == []
    make_run(tmp_path, "new", status="running")
    assert [seen.name for seen in watcher.look()] == ["new"]
    with pytest.raises(RunError, match="no folder"):
        Watcher([tmp_path / "nowhere"]).look()


def seen(name: str, status: str = "running") -> RunSnapshot:
    last = {"test_accuracy": 42.0, "test_loss": 1.0, "train_loss": float("nan")}
    return RunSnapshot(Path(name), name, 0, status, 2, 12, last, 2.1, 250.4, 96.0, 4.0)


def drawn(runs: list[RunSnapshot], width: int, height: int) -> str:
    """The table as a terminal of that size shows it, without its colours."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    with console.capture() as capture:
        console.print(display(runs, width, height))
    return "\n".join(Text.from_ansi(line).plain for line in capture.get().splitlines())


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_the_table_fits_and_cuts_no_number(width: int) -> None:
    many = [seen("a-very-long-name-of-a-study-with-many-words-0.5"), seen("short", "interrupted")]
    lines = drawn(many, width, 20).splitlines()
    assert max(len(line) for line in lines) <= width
    body = " ".join(lines)
    above = " ".join(lines[: next(i for i, line in enumerate(lines) if "2/12" in line)])
    heads = [head for head in cells(many[0]) if all(part in above for part in head.split("\n"))]
    assert heads[:3] == ["run", "status", "epoch"]
    for head in heads[1:]:
        assert cells(many[0])[head] in body
    assert ("images/s" in body) == (width >= 90)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_once_on_a_terminal_names_the_columns_that_do_not_fit(width: int) -> None:
    table = to_table([seen("a-long-name-of-a-study-rate-0.5"), seen("short", "interrupted")])
    text = Text.from_ansi(render(table, "table", terminal_width=width)).plain
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    shown, caption = text.split("\n\n")
    heads = [column.one_line for column in table.columns]
    hidden = [head for head in heads if any(word not in shown for word in head.split())]
    assert ("images/s" in hidden) == (width < 120)
    missing = f" Too narrow for: {', '.join(hidden)}; a wider terminal or a pipe shows them."
    assert " ".join(caption.split()) == "1 running, 1 interrupted." + missing * bool(hidden)


def test_more_runs_than_lines_are_counted() -> None:
    text = drawn([seen(f"r{i}") for i in range(30)], 80, 15)
    assert "21 more below" in text
    assert len(text.splitlines()) <= 15


def test_a_pipe_gets_plain_text_and_everything(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch([runs])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "1 running, 1 failed, 1 done" in out
    assert out.splitlines()[0].split("  ")[0] == "run"
    done = next(line for line in out.splitlines() if line.startswith("done"))
    assert done.split() == [
        "done",
        "seed",
        "0",
        "done",
        "3/3",
        "error",
        "57.00",
        "%",
        "1.050",
        "250",
        "–",
        "–",
    ]


def test_names_that_would_write_to_the_terminal_are_escaped(tmp_path: Path) -> None:
    make_run(tmp_path, "a", run={"name": "\x1b[31mred[bold]"})
    text = render(to_table(Watcher([tmp_path]).look()), "table")
    assert "\x1b" not in text
    assert "\\x1b[31mred[bold]" in text


def in_terminal(runs: Path) -> tuple[subprocess.Popen[bytes], int, list[Any]]:
    """`vshift watch` in a terminal of its own, once it has drawn."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    command = [sys.executable, "-m", "vshift", "watch", str(runs), "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 30
    while b"q leaves" not in shown:
        assert time.monotonic() < end, shown
        if select.select([ours], [], [], 0.2)[0]:
            shown += os.read(ours, 65536)
    assert b"going" in shown
    assert b"\x1b[?1049h" in shown  # on a screen of its own
    assert termios.tcgetattr(ours) != before  # single keys, without Enter
    return process, ours, before


def drained(process: subprocess.Popen[bytes], ours: int) -> bytes:
    rest = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        try:
            rest += os.read(ours, 65536) if select.select([ours], [], [], 0.1)[0] else b""
        except OSError:  # the other side is closed
            break
    process.wait(20)
    return rest


@pytest.mark.parametrize("how", ["q", "interrupt"])
def test_it_leaves_cleanly(runs: Path, how: str) -> None:
    process, ours, before = in_terminal(runs)
    if how == "q":
        os.write(ours, b"q")
    else:
        process.send_signal(signal.SIGINT)
    rest = drained(process, ours)
    assert process.returncode == 0
    assert b"Traceback" not in rest
    assert b"\x1b[?1049l" in rest  # the terminal's own screen is back
    assert b"\x1b[?25h" in rest  # and its cursor
    assert termios.tcgetattr(ours) == before  # and its keys
    os.close(ours)


def test_json_has_the_tables_numbers(runs: Path, vshift: Any) -> None:
    code, out, _ = vshift("watch", runs, "--once", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == ["going", "broken", "done"]  # those that need attention first
    going = rows["going"]
    assert (going["path"], going["seed"]) == (str(runs / "going" / "seed-1"), 1)
    assert (going["status"], going["epoch"], going["epochs"]) == ("running", 2, 12)
    assert (going["test_accuracy"], going["test_loss"], going["test_rmse"]) == (42.0, 1.0, None)
    assert going["shift_ratio_mean"] == pytest.approx(2.1)
    assert 0 < going["seconds_left"] <= 100
    assert rows["broken"]["seconds_left"] is None


def test_a_live_table_leaves_out_what_all_names_begin_with() -> None:
    text = drawn([seen("study-before-bn"), seen("study-before-conv")], 60, 20)
    assert "bn seed" in text
    assert "conv seed" in text
    assert "study-" not in text
