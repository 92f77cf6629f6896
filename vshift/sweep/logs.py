"""The output of a run's processes: `<runs-dir>/<name>/seed-<n>.log`, beside the run folder.

Beside it rather than in it, because a process that fails before it has made the folder has most to
say.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from vshift.runs import files, now
from vshift.text import escape_lines

LARGEST = 2**20  # bytes; only the end of a longer log is kept
KEPT = LARGEST // 4
EXCERPT = 12  # lines


def log_path(path: Path) -> Path:
    """The log of the run in a folder."""
    return path.with_name(f"{path.name}.log")


def open_log(path: Path, title: str) -> IO[bytes]:
    """Open a log to append one attempt under a title; RunError if that fails."""
    with files.explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        trim(path)
        file = open(path, "ab", 0, opener=files.not_through_links)  # noqa: SIM115 - for the caller
        file.write(f"--- {now()} {title}\n".encode())
        return file


def trim(path: Path) -> None:
    """Cut a log that is too long down to its end; its writer may continue to append."""
    try:
        if path.lstat().st_size <= LARGEST:
            return
        with open(path, "r+b", opener=files.not_through_links) as file:
            file.seek(-KEPT, 2)
            end = file.read(KEPT).partition(b"\n")[2]
            file.seek(0)
            file.truncate()
            file.write(b"--- the beginning was cut off\n" + end)
    except OSError:
        return  # a log is not worth failing a run for


def excerpt(path: Path) -> str:
    """The part of a log that explains a failure: the last attempt's error, or its last lines."""
    try:
        with open(path, "rb", opener=files.not_through_links) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65_536))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    lines = [escape_lines(line) for line in text.rstrip().split("\n")]
    starts = [n for n, line in enumerate(lines) if line.startswith("--- ")]
    lines = lines[starts[-1] + 1 :] if starts else lines
    errors = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        return "\n".join(lines[errors[-1] :][:EXCERPT])
    return "\n".join(lines[-EXCERPT:]) or "it printed nothing"
