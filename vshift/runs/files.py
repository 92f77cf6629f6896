"""Files that survive a kill, whole in the old or the new version, and JSON in them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vshift.errors import Damaged, RunError
from vshift.text import to_json

Row = dict[str, Any]
LARGEST = 64 * 2**20  # bytes of a JSON file; ours have a few thousand
LONGEST = 2**20  # bytes of a line of JSON; ours have under a thousand

_ELSEWHERE = "choose another --runs-dir"
_REMEDIES = {
    errno.ENOSPC: f"free some space and start the same command again, or {_ELSEWHERE}",
    errno.EFBIG: f"the system limits the size of files (ulimit -f); raise it, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some of your quota and start the same command again, or {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: f"give yourself permission (chmod, chown), or {_ELSEWHERE}",
    errno.EPERM: f"give yourself permission (chmod, chown), or {_ELSEWHERE}",
    errno.ENOENT: "the folder was deleted or moved; start the run again",
    errno.ESTALE: "the folder was deleted or moved; start the run again",
    errno.ENOTDIR: f"a file is where a folder should be; move it away, or {_ELSEWHERE}",
    errno.EEXIST: f"a file is where a folder should be; move it away, or {_ELSEWHERE}",
    errno.EISDIR: "a folder is where this file should be; move it away",
    errno.ENAMETOOLONG: f"give the config a shorter name, or {_ELSEWHERE}",
    errno.ELOOP: "a symbolic link is where this file should be; remove it",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.EIO: f"the disk reports an error; {_ELSEWHERE} on another disk",
}


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a RunError that names the path, the reason and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, f"correct that, or {_ELSEWHERE}")
        raise RunError(f"cannot {doing} {path}: {reason}; {remedy}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents unless they exist."""
    with explained(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary(path: Path) -> Path:
    """Where a file's next version is written: a fixed name, so that kills leave at most one."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacement(path: Path, data: bytes | bytearray | memoryview) -> Iterator[None]:
    """Write a file's next version, run the block, and then put the new version in place at once.

    After a RunError the old version is still there.
    """
    new = temporary(path)
    with explained(path, "write"):
        try:
            with open(new, "wb", opener=_not_through_links) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield
            os.replace(new, path)
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace a file's content at once; after a RunError the old version is still there."""
    with replacement(path, data):
        pass


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, to_json(value, indent=2) + "\n")


def from_json(text: str | bytes) -> Row:
    """Parse one JSON object; ValueError for anything else."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"not an object in braces but {type(value).__name__}")
    return value


def read_bytes(path: Path, most: int | None = None, begins: bytes = b"") -> bytes | None:
    """Read a file; None if there is none (a pipe, which would block, counts as none).

    Args:
        most: bytes; a larger file is damaged or not ours, and is not read.
        begins: the first bytes, checked before the rest is read.
    """
    with explained(path, "read"):
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise _damaged(path, f"{size:,} bytes are more than {most:,}")
            if file.read(len(begins)) != begins:
                raise _damaged(path, f"it does not begin with {begins!r}")
            return begins + file.read()


def _damaged(where: object, reason: object) -> Damaged:
    return Damaged(f"{where} is damaged: {reason}; `--fresh` trains the run again")


def read_json(path: Path) -> Row | None:
    """Read the object in a file; None if there is no file, RunError if it is damaged."""
    data = read_bytes(path, LARGEST)
    if data is None:
        return None
    try:
        return from_json(data)
    except ValueError as error:
        raise _damaged(path, error) from error


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines in one write; after a RunError the earlier lines are unchanged."""
    lines = "".join(to_json(row) + "\n" for row in rows).encode("utf-8", "backslashreplace")
    if not lines:
        return
    with (
        explained(path, "append to"),
        open(path, "a+b", buffering=0, opener=_not_through_links) as file,
    ):
        end = _cut_torn_line(file)
        try:
            _write_all(file, lines)
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
    if end == 0:
        sync_folder(path.parent)


def _write_all(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _cut_torn_line(file: IO[bytes]) -> int:
    """Remove a line that a kill cut off, which a new row would otherwise continue."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    begin = file.seek(max(0, size - LONGEST - 1))
    tail = file.read()
    if tail.endswith(b"\n"):
        return size
    start = tail.rfind(b"\n") + 1
    try:
        from_json(tail[start:])
    except ValueError:
        return file.truncate(begin + start)
    _write_all(file, b"\n")
    return size + 1


def read_rows(path: Path, skip: Callable[[bytes], bool] | None = None) -> list[Row]:
    """Read the rows of a .jsonl file, without one torn last line; none if there is no file.

    Args:
        skip: says of a line, as it stands in the file, that it need not be parsed.

    Raises:
        RunError: a line before the last one is damaged or absurdly long, named as file:line.
    """
    rows: list[Row] = []
    problem: Damaged | None = None
    with explained(path, "read"):
        if not path.is_file():
            return []
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
                if not line.strip():
                    continue
                if problem is not None:  # the damaged line was not the last one
                    raise problem
                if skip is not None and skip(line):
                    continue
                if len(line) > LONGEST:
                    raise _damaged(f"{path}:{number}", f"a line of over {LONGEST:,} bytes")
                try:
                    rows.append(from_json(line))
                except ValueError as error:
                    problem = _damaged(f"{path}:{number}", error)
    return rows
