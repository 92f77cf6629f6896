"""One process trains in a run folder at a time, also where several machines share a disk.

`.owner.json` in the folder names the owner, its host and process; the file's time of change is its
last sign of life. The file is made by a hard link, which only one of several processes can make, on
NFS too. An owner is gone when its process is, or, on another machine, when it was silent for
SILENCE seconds.

The library filelock cannot replace this. Its kernel locks are not to be relied on over NFS, and a
forked child that outlives the owner keeps them. Its leases are in recent versions only, are taken
over only by a process that itself watched the file during the whole silence, instead of by the
file's age, and are taken from a suspended owner on the same machine.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vshift.cache import locked
from vshift.errors import RunError, RunLost
from vshift.runs import files
from vshift.text import escape_control

OWNER = ".owner.json"
SILENCE = 600.0  # seconds without a sign of life after which an owner elsewhere counts as gone
PULSE = 20.0  # seconds between signs of life
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
# folder → (content of its owner file, when it was last touched on time.monotonic's clock).
_held: dict[Path, tuple[bytes, float]] = {}


class FolderHeld(RunError):
    """Another process holds the folder."""


@dataclass(frozen=True)
class Owner:
    """A process: its pid is valid on `machine`; `began` distinguishes it from a later one."""

    host: str
    machine: str
    pid: int
    began: int | None

    @classmethod
    def me(cls) -> Owner:
        return cls(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()))

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """The owner in a file; None if the file is damaged."""
        try:
            values = json.loads(content)
            owner = cls(*(values[key] for key in ("host", "machine", "pid", "began")))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        is_valid = isinstance(owner.pid, int) and owner.pid > 0 and isinstance(owner.host, str)
        return owner if is_valid else None

    def __str__(self) -> str:
        return f"pid {self.pid} on {escape_control(self.host[:60])}"

    @property
    def is_here(self) -> bool:
        return self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether it ran on this machine and has ended."""
        if not self.is_here:
            return False
        began = _began(self.pid)
        if began is not None:
            return began == 0 or self.began not in (None, began)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is somebody else's
            return False
        return False


def lock(folder: Path) -> None:
    """Hold the folder until `release`; holding it twice is fine. The owner calls `pulse`.

    Raises:
        FolderHeld: another process holds it.
        RunError: the folder cannot be written.
    """
    key = folder.resolve()
    if key in _held:
        pulse(folder, at_once=True)
        return
    content = json.dumps(asdict(Owner.me())).encode()
    # Processes of one machine look one after the other, so that only one takes a folder over.
    with files.explained(folder / OWNER, "write"), locked(key, seconds=2):
        for _ in range(5):
            now = _claim(key, content)
            if now is None:
                _held[key] = content, time.monotonic()
                return
            _remove_if_gone(folder, key, now)
    raise FolderHeld(f"several processes want to train in {folder}; start this one again")


def pulse(folder: Path, *, at_once: bool = False) -> None:
    """Refresh the ownership file for a held folder, every PULSE seconds however often it is called.

    Raises:
        RunLost: the folder is gone, or another process has taken it over.
    """
    key = folder.resolve()
    content, last = _held.get(key, (None, 0.0))
    if content is None or (time.monotonic() - last < PULSE and not at_once):
        return
    _held[key] = content, time.monotonic()
    try:
        with files.explained(folder / OWNER, "read"):
            present = _content(key)
            if present is None and _claim(key, content) is not None:
                present = _content(key)
            if present in (None, content):
                os.utime(key / OWNER)
                return
    except RunError as error:
        raise RunLost(str(error)) from error
    _held.pop(key)
    raise RunLost(
        f"{folder} was taken over by {Owner.read(present or b'') or 'unknown'} while this process "
        f"gave no sign of life for {SILENCE / 60:.0f} minutes; this one stops"
    )


def is_held(folder: Path) -> bool:
    """Whether this process holds the folder."""
    return folder.resolve() in _held


def release(folder: Path) -> None:
    """Let go of the folder; one that this process does not hold is left alone."""
    key = folder.resolve()
    content, _ = _held.pop(key, (None, 0.0))
    with suppress(OSError):
        if content is not None and _content(key) == content:
            (key / OWNER).unlink()


def holder(folder: Path) -> str | None:
    """`pid 12 on host` of the live process that holds a folder, None if there is none.

    Judges as `lock` does, but by this machine's clock, because looking writes nothing. A wrong
    answer does no harm: whoever then trains there calls `lock`.
    """
    path = folder / OWNER
    try:
        content, silent = _content(folder) or b"", time.time() - path.stat().st_mtime
    except OSError:
        return None
    owner = Owner.read(content)
    if _is_gone(owner, silent):
        return None
    return "an unknown process" if owner is None else str(owner)


def _is_gone(owner: Owner | None, silent: float) -> bool:
    if owner is not None and owner.is_here:
        return owner.is_dead
    return silent >= SILENCE


def _claim(key: Path, content: bytes) -> float | None:
    """Make the owner file; if there is one, return the time on the file system's own clock."""
    mine = key / f".owner.{socket.gethostname()[:60]}.{os.getpid()}.tmp"
    try:
        with open(mine, "wb", opener=files.not_through_links) as file:
            file.write(content)
        now = mine.stat().st_mtime
        try:
            os.link(mine, key / OWNER)
        except FileExistsError:
            # Over NFS the answer to a first try may be lost, and the second one then finds it made.
            return None if mine.stat().st_nlink == 2 else now
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without hard links: some file systems of USB sticks and containers.
            try:
                with open(key / OWNER, "xb") as file:
                    file.write(content)
            except FileExistsError:
                return now
        return None
    finally:
        mine.unlink(missing_ok=True)


def _content(key: Path, name: str = OWNER) -> bytes | None:
    """What is in the owner file; None if there is none, or a pipe, which would block."""
    try:
        return (key / name).read_bytes() if (key / name).is_file() else None
    except FileNotFoundError:
        return None


def _remove_if_gone(folder: Path, key: Path, now: float) -> None:
    """Remove the owner file of an owner that is gone; FolderHeld if it is not."""
    try:
        content, touched = _content(key), (key / OWNER).stat().st_mtime
    except FileNotFoundError:
        return
    owner, silent = Owner.read(content or b""), max(0.0, now - touched)
    if not _is_gone(owner, silent):
        is_here = owner is not None and owner.is_here
        text = (
            f"another process is training in {folder}: {owner or 'unknown'}, last sign of life "
            f"{silent:.0f} s ago; wait for it, "
            + (f"stop it (kill {owner.pid}), " if owner and is_here else "")
            + "or choose another --runs-dir"
        )
        if not is_here:
            text += (
                f". If it is gone, its hold ends after {SILENCE / 60:.0f} minutes of silence, or "
                f"at once if you remove {folder / OWNER}"
            )
        raise FolderHeld(text)
    # Moved aside before it is removed, and read again: between reading and removing, another
    # process may have taken the folder over, and its file must not be the one that is removed.
    aside = key / f".owner.{os.getpid()}.gone"
    with suppress(FileNotFoundError):
        os.rename(key / OWNER, aside)
        if _content(key, aside.name) != content:
            with suppress(OSError):
                os.link(aside, key / OWNER)
        aside.unlink()


def _machine() -> str:
    """Where process ids mean the same: one boot of one kernel, and a container's own processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _began(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; 0 for one that ended, None if unknown."""
    try:
        # The second field, the program's name in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0 if Path("/proc/self/stat").exists() else None
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])
