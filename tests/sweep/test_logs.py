"""Logs of runs: how long they get, and what a person sees of them."""

import os

import pytest

from vshift.errors import RunError
from vshift.sweep.logs import LARGEST, excerpt, log_path, open_log, trim


def test_a_log_keeps_its_end(bench):
    bench.seeds, bench.behaviours = 1, {"s seed 0": [f"chatter:{LARGEST + 5}", "done"]}
    bench.sweep()
    path = log_path(bench.runs / "s" / "seed-0")
    assert path.stat().st_size > LARGEST
    with open_log(path, "next") as log:
        log.write(b"more\n")
    assert path.stat().st_size < LARGEST
    text = path.read_text()
    assert text.startswith("--- the beginning was cut off\n")
    assert text.endswith("next\nmore\n")


def test_a_writer_keeps_appending_to_a_log_that_is_cut(tmp_path):
    path = tmp_path / "a.log"
    with open_log(path, "one") as log:
        log.write(b"y\n" * LARGEST)
        trim(path)
        log.write(b"last\n")
    assert path.stat().st_size < LARGEST
    assert path.read_bytes().endswith(b"y\nlast\n")
    assert b"\0" not in path.read_bytes()


def test_an_excerpt_is_the_last_attempts_error(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("--- one\nerror: old\n--- two\nepoch 1\nerror: new\n  and \x1b[31mmore\n")
    assert excerpt(path) == "error: new\n  and \\x1b[31mmore"
    path.write_text("--- one\n" + "".join(f"line {n}\n" for n in range(50)))
    assert excerpt(path).splitlines()[-1] == "line 49"
    assert len(excerpt(path).splitlines()) == 12
    path.write_text("--- one\n")
    assert excerpt(path) == "it printed nothing"
    assert "No such file" in excerpt(tmp_path / "none")


def test_a_log_that_is_a_link_is_neither_written_nor_cut(bench, tmp_path):
    mine, log = tmp_path / "mine", log_path(bench.runs / "s" / "seed-0")
    mine.write_bytes(b"y" * (LARGEST + 9))
    log.parent.mkdir(parents=True)
    log.symlink_to(mine)
    with pytest.raises(RunError, match="a symbolic link is where this file should be"):
        open_log(log, "one")
    trim(log)
    bench.seeds, bench.behaviours = 1, {"s seed 0": ["done"]}
    entry = bench.sweep()["seed 0"]
    assert (entry.state, entry.attempts) == ("failed", 1)
    assert "symbolic link" in bench.said
    assert mine.stat().st_size == LARGEST + 9


@pytest.mark.timeout(20)
def test_a_log_that_is_a_pipe_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "seed-0.log")
    with pytest.raises(RunError, match="a pipe or a device is where this file should be"):
        open_log(tmp_path / "seed-0.log", "one")
    trim(tmp_path / "seed-0.log")
    assert "cannot be read" in excerpt(tmp_path / "seed-0.log")
