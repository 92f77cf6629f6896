"""Writes that a kill cannot halve, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vshift.errors import RunError
from vshift.runs import files


def fail_with(number: int):
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_json_round_trip_of_numpy_pandas_and_nan(tmp_path: Path) -> None:
    frame = pd.Series([1.5])
    files.write_json(
        tmp_path / "a.json",
        {
            "float": np.float32(0.5),
            "double": np.float64("nan"),
            "int": np.int64(3),
            "bool": np.bool_(True),
            "array": np.array([1.0, np.inf]),
            "series": frame.mean(),
            "missing": pd.NA,
            "nan": math.nan,
            "minus": -math.inf,
            "path": tmp_path,
            "text": "ü\udc80",
        },
    )
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {
        "float": 0.5,
        "double": None,
        "int": 3,
        "bool": True,
        "array": [1.0, None],
        "series": 1.5,
        "missing": None,
        "nan": None,
        "minus": None,
        "path": str(tmp_path),
        "text": "ü\udc80",
    }


def test_json_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set has no place in a JSON file"):
        files.write_json(tmp_path / "a.json", {"a": {1}})
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_write_and_replace_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, {"version": 1})
    script = (
        "import os, pathlib, signal\n"
        "from vshift.runs import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"files.write_json(pathlib.Path({str(path)!r}), {{'version': 2}})\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert files.read_json(path) == {"version": 1}
    assert files.temporary(path).exists()
    files.write_json(path, {"version": 3})
    assert files.read_json(path) == {"version": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "another --runs-dir"),
        (errno.EACCES, "permission"),
        (errno.EIO, "another disk"),
        (errno.ENOLINK, "correct that"),
    ],
)
def test_a_failed_write_says_path_reason_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    path = tmp_path / "summary.json"
    files.write_json(path, {"version": 1})
    monkeypatch.setattr(os, "fsync", fail_with(number))
    with pytest.raises(RunError) as caught:
        files.write_json(path, {"version": 2})
    message = str(caught.value)
    assert str(path) in message
    assert os.strerror(number) in message
    assert words in message
    assert files.read_json(path) == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_while_appending_keeps_the_earlier_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_rows(path, [{"epoch": 1}])
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(RunError, match=r"append to .*metrics\.jsonl: No space.*free some space"):
        files.append_rows(path, [{"epoch": 2}, {"epoch": 3}])
    assert path.read_text() == '{"epoch": 1}\n'


def test_really_full_disk() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(RunError, match=r"/dev/full: No space left on device; free some space"):
        files.append_rows(full, [{"epoch": 2}])


def test_a_deleted_folder_and_a_too_long_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="deleted or moved"):
        files.write_json(tmp_path / "gone" / "run.json", {})
    with pytest.raises(RunError, match="deleted or moved"):
        files.append_rows(tmp_path / "gone" / "metrics.jsonl", [{}])
    with pytest.raises(RunError, match="shorter name"):
        files.write_json(tmp_path / ("x" * 300), {})


def test_appending_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text("mine\n")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "foreign")
    with pytest.raises(RunError, match="symbolic link"):
        files.append_rows(tmp_path / "metrics.jsonl", [{"epoch": 1}])
    assert (tmp_path / "foreign").read_text() == "mine\n"


@pytest.mark.parametrize("tail", ['{"epoch": 3, "tr', "{", "\x00\x00\x00", '"x"', "nul"])
def test_a_torn_last_line_is_dropped_and_mended(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n' + tail)
    assert files.read_rows(path) == [{"epoch": 1}, {"epoch": 2}]
    files.append_rows(path, [{"epoch": 3}])
    assert files.read_rows(path) == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    assert path.read_text().count("\n") == 3


def test_a_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}')
    assert files.read_rows(path) == [{"epoch": 1}]
    files.append_rows(path, [{"epoch": 2}])
    assert files.read_rows(path) == [{"epoch": 1}, {"epoch": 2}]


def test_half_a_utf8_character_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 1}\n{"a": "\xc3')
    assert files.read_rows(path) == [{"epoch": 1}]


def test_a_damaged_middle_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(RunError, match=r"layers\.jsonl:2 is damaged: .*--fresh"):
        files.read_rows(path)


def test_rows_of_a_missing_or_empty_file(tmp_path: Path) -> None:
    assert files.read_rows(tmp_path / "none.jsonl") == []
    files.append_rows(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("text", ["[1]", "{", "", "[" * 100_000, '{"a": ' * 100_000])
def test_a_damaged_object_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        files.read_json(tmp_path / "run.json")


def test_reading_takes_foreign_nan_as_null(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"a": NaN, "b": -Infinity}')
    assert files.read_json(tmp_path / "run.json") == {"a": None, "b": None}


def test_what_an_option_names_is_replaced_if_it_is_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "page.html"
    files.write_named(path, "--out", b"one")
    path.chmod(0o640)
    inode = path.stat().st_ino
    files.write_named(path, "--out", b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    link = tmp_path / "link"
    link.symlink_to(path)
    files.write_named(link, "--out", b"three")
    assert link.is_symlink()
    assert path.read_bytes() == b"three"
    (tmp_path / "dangling").symlink_to(tmp_path / "new.html")
    files.write_named(tmp_path / "dangling", "--out", b"four")
    assert (tmp_path / "new.html").read_bytes() == b"four"
    assert {p.name for p in tmp_path.rglob("*")} == {
        "made", "page.html", "link", "dangling", "new.html",
    }  # fmt: skip


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_that_an_option_names_is_written_into(tmp_path: Path, linked: bool) -> None:
    pipe, name = tmp_path / "pipe", tmp_path / "pipe"
    os.mkfifo(pipe)
    if linked:
        name = tmp_path / "link"
        name.symlink_to(pipe)
    content = os.urandom(300_000)  # more than a pipe holds
    writer = threading.Thread(target=files.write_named, args=(name, "--out", content))
    writer.start()
    assert pipe.read_bytes() == content
    writer.join()
    assert pipe.is_fifo()
    assert name.is_symlink() == linked


def test_a_device_that_an_option_names_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    null = Path("/dev/null").stat()
    for path in (Path("/dev/null"), tmp_path / "link"):
        files.write_named(path, "--out", b"gone")
    with pytest.raises(RunError, match=r"write --out /dev/full: No space left on device"):
        files.write_named(Path("/dev/full"), "--out", b"no room")
    assert os.path.samestat(Path("/dev/null").stat(), null)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make and replace devices")
def test_root_does_not_replace_a_device(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this system lets not even root make devices")
    with suppress(RunError):  # on a file system that is mounted without devices
        files.write_named(device, "--out", b"gone")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_many_processes_write_what_an_option_names(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vshift.runs import files\n"
        "for _ in range(40): files.write_named(Path('page'), '--out', sys.argv[1].encode() * 50000)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, name], cwd=tmp_path) for name in "abcd"
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    content = (tmp_path / "page").read_bytes()
    assert len(content) == 50_000
    assert len(set(content)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["page"]


def test_a_folder_where_an_option_names_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a folder is where .* choose another --fix"):
        files.write_named(tmp_path, "--fix", b"x")


def test_appending_to_a_pipe_without_a_reader_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match="append to"):
        files.append_rows(tmp_path / "metrics.jsonl", [{"epoch": 1}])
