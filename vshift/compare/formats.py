"""A table as text: for a terminal, a pipe, Markdown, LaTeX, HTML, CSV and JSON.

Names come from files that anybody may have written, so each format has its own way to write them
such that they stay text.
"""

from __future__ import annotations

import csv
import io
import shutil
from typing import Any, Literal, TextIO

from vshift.compare.columns import sheet as sheet_of
from vshift.compare.markup import html_table, latex, markdown
from vshift.compare.sheet import Column, Sheet
from vshift.compare.table import Comparison
from vshift.compare.terminal import render_terminal
from vshift.compare.text import visible
from vshift.errors import VShiftError, did_you_mean
from vshift.runs import files
from vshift.runs.reading import number

Format = Literal["table", "md", "latex", "csv", "json", "html"]
FORMATS: tuple[Format, ...] = ("table", "md", "latex", "csv", "json", "html")


def render(table: Comparison | Sheet, kind: str, *, terminal_width: int | None = None) -> str:
    """The table as text that ends in a newline.

    Args:
        kind: one of FORMATS.
        terminal_width: in characters; `table` then has colours and leaves out what does not fit.
            Without it nothing is ever cut.

    Raises:
        VShiftError: there is no such format.
    """
    writers = {
        "table": _plain, "md": markdown, "latex": latex, "csv": _csv, "json": _json,
        "html": html_table,
    }  # fmt: skip
    if kind not in writers:
        hint = did_you_mean(kind, FORMATS)
        raise VShiftError(
            f"--format {visible(kind)}: no such format; {hint + ' ' if hint else ''}"
            f"allowed: {', '.join(FORMATS)}"
        )
    sheet = sheet_of(table) if isinstance(table, Comparison) else table
    if kind == "table" and terminal_width is not None:
        return render_terminal(sheet, terminal_width)
    return writers[kind](sheet)


def write(
    table: Comparison | Sheet, kind: str, stream: TextIO, *, terminal: bool | None = None
) -> None:
    """Print the table; `terminal` says whether the stream is one (default: ask it)."""
    is_terminal = stream.isatty() if terminal is None else terminal
    width = shutil.get_terminal_size().columns if is_terminal else None
    text = render(table, kind, terminal_width=width)
    # A backslash would be a command in LaTeX.
    otherwise = "replace" if kind == "latex" else "backslashreplace"
    stream.write(_encodable(text, stream.encoding or "utf-8", otherwise))
    stream.flush()


_ASCII = str.maketrans({"±": "+/-", "−": "-", "–": "-", "─": "-", "×": "x", "β": "beta"})


def _encodable(text: str, encoding: str, otherwise: str) -> str:
    """Text that an ASCII terminal or log takes too."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, otherwise).decode(encoding)
    return text


def _plain(sheet: Sheet) -> str:
    from rich.cells import cell_len

    lines = [[column.line for column in sheet.columns], *sheet.rows]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(sheet.columns))]

    def pad(text: str, column: Column, width: int) -> str:
        space = " " * (width - cell_len(text))
        return text + space if column.is_text else space + text

    aligned = (
        "  ".join(pad(*cell) for cell in zip(line, sheet.columns, widths, strict=True))
        for line in lines
    )
    return "\n".join([*(line.rstrip() for line in aligned), "", sheet.caption, ""])


# The wide forms too, which Japanese and Chinese spreadsheets take for the narrow ones.
_FORMULA = tuple("=+-@＝＋－＠")


def _unformula(value: Any) -> Any:
    """Text that a spreadsheet does not take for a formula."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = visible(value)
    suspect = text.lstrip()[:1] in _FORMULA and not _is_number(text)
    return f"'{text}" if suspect else text


def _is_number(text: str) -> bool:
    try:
        return number(float(text)) is not None
    except ValueError:
        return False


def _csv(sheet: Sheet) -> str:
    """The records with full precision; a value that is missing is an empty cell."""
    keys = dict.fromkeys(key for record in sheet.records for key in record)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_unformula(key) for key in keys])
    for record in sheet.records:
        writer.writerow([_unformula(files.plain(record.get(key))) for key in keys])
    return buffer.getvalue()


def _json(sheet: Sheet) -> str:
    return files.to_json(sheet.records, indent=2, ascii_only=True) + "\n"
