"""The standard streams: closed ones, those whose reader has left, and those of few characters."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vshift.tables import width_of
from vshift.text import PLAIN, escape_control, escape_lines, wrap_words


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Inside, messages on stderr never fail, and no character is one too many for either stream.

    A terminal that is closed, a reader that has left (`2>&1 | head`) and a full disk below a log
    lose messages and end no run. Data on stdout fails, for `main` to say so; what was closed
    before the start (`>&-`) counts as the null device.
    """
    _open_closed()
    _soften(sys.stdout)
    messages = sys.stderr
    try:
        messages.flush()
        file = io.BufferedWriter(_Lossy(messages.fileno(), "wb", closefd=False))
    except (OSError, ValueError, AttributeError):  # not a file: somebody else collects messages
        yield
        return
    sys.stderr = io.TextIOWrapper(file, messages.encoding, PLAIN, line_buffering=True)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = messages


class _Lossy(io.FileIO):
    """A file that takes what it cannot write for written."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def _open_closed() -> None:
    """Open the null device where a standard stream is closed.

    Otherwise the next file that is opened would get its number, and what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            assert os.open(os.devnull, os.O_RDWR) == number  # the lowest that is free
            os.set_inheritable(number, True)
            if getattr(sys, name) is None:
                stream = open(  # noqa: SIM115 - for as long as the process lives
                    number, "w" if number else "r", encoding="utf-8", closefd=False
                )
                setattr(sys, name, stream)


def _soften(stream: Any) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=PLAIN)


def echo(text: object = "", *, end: str = "\n") -> None:
    """Print to stdout, at once; characters as `forgiving_streams` has them.

    Not typer's, which writes UTF-8 wherever a stream has ASCII only.
    """
    print(text, end=end, flush=True)


def tell(message: str) -> None:
    """Print a message to stderr, control characters escaped; a terminal's lines break at words.

    What asks for attention begins with `note:`, `warning:` or `error:`, what may be done next with
    `next:`.
    """
    print(wrap_words(escape_lines(message), width_of(sys.stderr)), file=sys.stderr, flush=True)


def tell_to_open(page: Path) -> None:
    """Say what is next after a page was written."""
    tell(f"next: open {shlex.quote(str(page))} in a browser")


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Inside, a terminal shows what takes its time, and since when."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        progress.add_task(escape(escape_control(doing)))
        yield


def silence(stream: Any) -> None:
    """Keep Python from complaining when it flushes what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
