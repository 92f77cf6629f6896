"""Tables as text: for a terminal, a pipe, Markdown, LaTeX, HTML, CSV and JSON.

The only writer of tables.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import Literal, TextIO

from vshift.errors import VShiftError
from vshift.tables.formats import as_csv, as_json, html_table, latex, markdown, page_style, plain
from vshift.tables.table import Column, Table
from vshift.tables.terminal import live_table, render_terminal
from vshift.text import PLAINER, escape_control, suggest

__all__ = [
    "FORMATS",
    "Column",
    "Format",
    "Table",
    "html_table",
    "live_table",
    "markdown",
    "page_style",
    "render",
    "width_of",
    "write",
]

Format = Literal["table", "md", "latex", "csv", "json", "html"]
FORMATS: tuple[Format, ...] = ("table", "md", "latex", "csv", "json", "html")


def render(
    table: Table, kind: str, *, terminal_width: int | None = None, brief: bool = False
) -> str:
    """The table as text that ends in a newline.

    Args:
        kind: one of FORMATS.
        terminal_width: in characters; `table` then has colours and leaves out what does not fit.
            Without it nothing is ever cut.
        brief: on a terminal, of the caption the columns' notes and what else fits three lines.

    Raises:
        VShiftError: there is no such format.
    """
    writers = {
        "table": plain, "md": markdown, "latex": latex, "csv": as_csv, "json": as_json,
        "html": html_table,
    }  # fmt: skip
    if kind not in writers:
        raise VShiftError(
            f"--format {escape_control(kind)}: no such format; {suggest(kind, FORMATS)}"
            f"allowed: {', '.join(FORMATS)}"
        )
    if kind == "table" and terminal_width is not None:
        return render_terminal(table, terminal_width, brief)
    return writers[kind](table)


def width_of(stream: TextIO, terminal: bool | None = None) -> int | None:
    """The columns of a terminal; None of another stream, whose lines have any length.

    Args:
        terminal: whether the stream is one; by default it is asked.
    """
    if not (stream.isatty() if terminal is None else terminal):
        return None
    size = (80, 24)
    with suppress(OSError):  # its own, where another stream is the terminal that shutil asks
        size = os.get_terminal_size(stream.fileno())
    return shutil.get_terminal_size(size).columns


def write(
    table: Table,
    kind: str,
    stream: TextIO,
    *,
    terminal: bool | None = None,
    brief: bool = False,
) -> None:
    """Print the table; `terminal` says whether the stream is one (default: ask it)."""
    text = render(table, kind, terminal_width=width_of(stream, terminal), brief=brief)
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # an ASCII terminal or log; a backslash would be a command in LaTeX
        otherwise = "replace" if kind == "latex" else "backslashreplace"
        text = text.translate(PLAINER).encode(encoding, otherwise).decode(encoding)
    stream.write(text)
    stream.flush()
