"""One process trains in a run folder at a time, also where several machines share a disk.

`.owner.json` in the folder says who: host, process, and by its time of change when the owner last
gave a sign of life. It appears by a hard link, which only one of several processes can make, on NFS
too; flock alone is not to be relied on there. An owner is gone when its process is, or, on another
machine, when it was silent for SILENCE seconds.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vshift.errors import RunError, RunLost
from vshift.runs import files
from vshift.text import escape_control

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

OWNER = ".owner.json"
SILENCE = 600.0  # seconds without a sign of life after which an owner elsewhere counts as gone
PULSE = 20.0  # seconds between signs of life
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
# folder → (content of its owner file, when it was last touched on time.monotonic's clock).
_held: dict[Path, tuple[bytes, float]] = {}


@dataclass(frozen=True)
class Owner:
    """A process: its pid means something on `machine`, `began` tells it from a later one."""

    host: str
    machine: str
    pid: int
    began: int | None

    @classmethod
    def me(cls) -> Owner:
        return cls(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()))

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """None where the file does not say."""
        try:
            found = json.loads(content)
            owner = cls(*(found[key] for key in ("host", "machine", "pid", "began")))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        is_one = isinstance(owner.pid, int) and owner.pid > 0 and isinstance(owner.host, str)
        return owner if is_one else None

    @property
    def is_dead(self) -> bool:
        """Whether it ran on this machine and does not any more."""
        return self.machine == _machine() and not _is_alive(self.pid, self.began)


def lock(folder: Path) -> None:
    """Hold the folder until `release`; holding it twice is fine. The owner calls `pulse`.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    key = folder.resolve()
    if key in _held:
        pulse(folder, at_once=True)
        return
    content = json.dumps(asdict(Owner.me())).encode()
    with files.explained(folder / OWNER, "write"), _one_by_one(key):
        for _ in range(5):
            made = _claim(key, content)
            if made is None:
                _held[key] = content, time.monotonic()
                return
            _remove_if_gone(folder, key, now=made)
    raise RunError(f"several processes want to train in {folder}; start this one again")


def pulse(folder: Path, *, at_once: bool = False) -> None:
    """A sign of life, every PULSE seconds however often it is called, for folders that are held.

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
            found = _content(key)
            if found is None and _claim(key, content) is not None:
                found = _content(key)
            if found in (None, content):
                os.utime(key / OWNER)
                return
    except RunError as error:
        raise RunLost(str(error)) from error
    _held.pop(key)
    raise RunLost(
        f"{folder} was taken over by {_name(Owner.read(found or b''))} while this process "
        f"gave no sign of life for {SILENCE / 60:.0f} minutes; this one stops"
    )


def is_held(folder: Path) -> bool:
    return folder.resolve() in _held


def release(folder: Path) -> None:
    """Let go of the folder; one that this process does not hold is left alone."""
    key = folder.resolve()
    content, _ = _held.pop(key, (None, 0.0))
    with suppress(OSError):
        if content is not None and _content(key) == content:
            (key / OWNER).unlink()


def _claim(key: Path, content: bytes) -> float | None:
    """Make the owner file unless there is one; then the time on the file system's own clock."""
    mine = key / f".owner.{socket.gethostname()[:60]}.{os.getpid()}.tmp"
    try:
        mine.write_bytes(content)
        now = mine.stat().st_mtime
        try:
            os.link(mine, key / OWNER)
        except FileExistsError:
            # Over NFS the answer to a first try may be lost, and the second one then finds it made.
            return None if mine.stat().st_nlink == 2 else now
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return None if _create(key / OWNER, content) else now
        return None
    finally:
        mine.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> bool:
    """Without hard links: some file systems of USB sticks and containers."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True


def _content(key: Path) -> bytes | None:
    try:
        return (key / OWNER).read_bytes()
    except FileNotFoundError:
        return None


def _remove_if_gone(folder: Path, key: Path, now: float) -> None:
    """Remove the owner file of an owner that is gone; RunError where it is not."""
    try:
        content, touched = (key / OWNER).read_bytes(), (key / OWNER).stat().st_mtime
    except FileNotFoundError:
        return
    owner, silent = Owner.read(content), max(0.0, now - touched)
    here = owner is not None and owner.machine == _machine()
    if not (owner is not None and owner.is_dead) and (here or silent < SILENCE):
        raise RunError(_busy(folder, owner, silent, here))
    # Moved aside before it is removed, and looked at again: between reading and removing, another
    # process may have taken the folder over, and its file must not be the one that goes.
    aside = key / f".owner.{os.getpid()}.gone"
    with suppress(FileNotFoundError):
        os.rename(key / OWNER, aside)
        if aside.read_bytes() != content:
            with suppress(OSError):
                os.link(aside, key / OWNER)
        aside.unlink()


def _busy(folder: Path, owner: Owner | None, silent: float, here: bool) -> str:
    text = (
        f"another process is training in {folder}: {_name(owner)}, last sign of life "
        f"{silent:.0f} s ago; wait for it, "
    )
    text += f"stop it (kill {owner.pid}), " if owner and here else ""
    text += "or choose another --runs-dir"
    if not here:
        text += (
            f". If it is gone, its hold ends after {SILENCE / 60:.0f} minutes of silence, or at "
            f"once if you remove {folder / OWNER}"
        )
    return text


def _name(owner: Owner | None) -> str:
    return "unknown" if owner is None else f"pid {owner.pid} on {escape_control(owner.host[:60])}"


def _machine() -> str:
    """Where process ids mean the same: one start of one kernel, and a container's own processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _began(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; 0 for one that ended, None if unknown."""
    try:
        # The second field, the program's name in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0 if Path("/proc/self/stat").exists() else None
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def _is_alive(pid: int, began: int | None) -> bool:
    now = _began(pid)
    if now is not None:
        return now != 0 and began in (None, now)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


@contextmanager
def _one_by_one(key: Path) -> Iterator[None]:
    """Processes of one machine take a folder one after the other, where the file system can.

    Only while they look: a forked child that outlives its parent would keep a lock for ever.
    """
    descriptor = os.open(key, os.O_RDONLY)
    try:
        for _ in range(100 if fcntl else 0):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
