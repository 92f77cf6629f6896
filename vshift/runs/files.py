"""Files that survive a kill, whole in the old or the new version, and JSON in them."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vshift.errors import Damaged, RunError
from vshift.text import to_json

Row = dict[str, Any]
LARGEST = 64 * 2**20  # bytes of a JSON file; ours have a few thousand
LONGEST = 2**20  # bytes of a line of JSON; ours have under a thousand

_REMEDIES = {
    errno.ENOSPC: "free some space and start the same command again, or {choose}",
    errno.EFBIG: "the system limits the size of files (ulimit -f); raise it, or {choose}",
    errno.EDQUOT: "free some of your quota and start the same command again, or {choose}",
    errno.EROFS: "{choose}",
    errno.EACCES: "give yourself permission (chmod, chown), or {choose}",
    errno.EPERM: "give yourself permission (chmod, chown), or {choose}",
    errno.ENOENT: "the folder was deleted or moved; start the same command again",
    errno.ESTALE: "the folder was deleted or moved; start the same command again",
    errno.ENOTDIR: "a file is where a folder should be; move it away, or {choose}",
    errno.EEXIST: "a file is where a folder should be; move it away, or {choose}",
    errno.EISDIR: "a folder is where this file should be; move it away, or {choose}",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a symbolic link is where this file should be; remove it",
    errno.ENXIO: "a pipe or a device is where this file should be; move it away, or {choose}",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.EIO: "the disk reports an error; {choose} on another disk",
}


@contextmanager
def explained(path: Path, doing: str, option: str = "--runs-dir") -> Iterator[None]:
    """Turn an OSError into a RunError that names the path, the reason and what to do.

    Args:
        option: with it the user chooses another place.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read what was written has enough of it
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "correct that, or {choose}")
        remedy = remedy.format(choose=f"choose another {option}")
        raise RunError(f"cannot {doing} {path}: {reason}; {remedy}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents unless they exist."""
    with explained(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)


def not_through_links(path: str, flags: int) -> int:
    """An `opener` that refuses to write through a symbolic link, or into a pipe without a reader.

    It fails with ELOOP for the one, and with ENXIO instead of waiting for the other.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags, 0o666)


def refuse_links(base: Path, path: Path) -> None:
    """Refuse a path under `base` that leads through a link: what is there is not `base`'s own.

    Raises:
        RunError: the path leads elsewhere.
    """
    with explained(path, "open"):
        target = os.path.realpath(path)
        own = os.path.join(os.path.realpath(base), os.path.relpath(path, base))
    if target != own:
        raise RunError(
            f"{path} leads through a link to {target}, and vshift changes nothing behind a link: "
            "remove the link, or choose another folder"
        )


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
    with explained(path, "write"), _replaced(path, temporary(path)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        yield
    sync_folder(path.parent)


@contextmanager
def _replaced(path: Path, new: Path) -> Iterator[IO[bytes]]:
    """Write a file under another name in the same folder, and on success give it its own."""
    try:
        with open(new, "wb", opener=not_through_links) as file:
            yield file
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace a file's content at once; after a RunError the old version is still there."""
    with replacement(path, data):
        pass


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_named(path: Path, option: str, data: bytes) -> None:
    """Write a file that the user named with an option; missing folders are made.

    A regular file is replaced at once, also at the end of a link, and keeps its permissions; what
    is none, such as a pipe or a device, is written into. Several processes may write the same file.

    Raises:
        RunError: it cannot be written.
        BrokenPipeError: the reader of a pipe has left.
    """
    with explained(path, f"write {option}", option):
        path.parent.mkdir(parents=True, exist_ok=True)
        mode: int | None = None
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
        if is_stdout(path):  # after what is in it, where replacing or opening it would cut that off
            sys.stdout.flush()
            with open(1, "wb", buffering=0, closefd=False) as file:
                _write_all(file, data)
        elif mode is None or stat.S_ISREG(mode):
            target = Path(os.path.realpath(path))
            with _replaced(target, target.with_name(f".vshift-{secrets.token_hex(8)}.tmp")) as new:
                new.write(data)
                if mode is not None:
                    os.fchmod(new.fileno(), stat.S_IMODE(mode))
        else:
            with open(path, "wb", buffering=0) as file:
                _write_all(file, data)


def is_stdout(path: Path) -> bool:
    """Whether a path, such as /dev/stdout, is this process's own output."""
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(1))
    return False


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
        open(path, "a+b", buffering=0, opener=not_through_links) as file,
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
