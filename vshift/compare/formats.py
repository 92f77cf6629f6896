"""A comparison as text: for a terminal, a pipe, Markdown, LaTeX, CSV and JSON.

Names come from files that anybody may have written, so each format has its own way to write them
such that they stay text.
"""

from __future__ import annotations

import re
import shutil
from typing import Any, Literal, TextIO

from vshift.compare.columns import Column, fold
from vshift.compare.table import TEXT_COLUMNS, Comparison, Row
from vshift.compare.terminal import render_terminal
from vshift.compare.text import visible
from vshift.errors import VShiftError, did_you_mean
from vshift.runs import files
from vshift.runs.reading import number

Format = Literal["table", "md", "latex", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "md", "latex", "csv", "json")


def render(comparison: Comparison, kind: str, *, terminal_width: int | None = None) -> str:
    """The comparison as text that ends in a newline.

    Args:
        kind: one of FORMATS.
        terminal_width: in characters; `table` then has colours and leaves out what does not fit.
            Without it nothing is ever cut.

    Raises:
        VShiftError: there is no such format.
    """
    if kind == "table" and terminal_width is not None:
        return render_terminal(comparison, terminal_width)
    writers = {"table": _plain, "md": _markdown, "latex": _latex, "csv": _csv, "json": _json}
    if kind not in writers:
        hint = did_you_mean(kind, FORMATS)
        raise VShiftError(
            f"--format {visible(kind)}: no such format; {hint + ' ' if hint else ''}"
            f"allowed: {', '.join(FORMATS)}"
        )
    return writers[kind](comparison)


def write(
    comparison: Comparison, kind: str, stream: TextIO, *, terminal: bool | None = None
) -> None:
    """Print the comparison; `terminal` says whether the stream is one (default: ask it)."""
    is_terminal = stream.isatty() if terminal is None else terminal
    width = shutil.get_terminal_size().columns if is_terminal else None
    text = render(comparison, kind, terminal_width=width)
    stream.write(_encodable(text, stream.encoding or "utf-8"))
    stream.flush()


_ASCII = str.maketrans({"±": "+/-", "−": "-", "–": "-", "─": "-"})


def _encodable(text: str, encoding: str) -> str:
    """Text that an ASCII terminal or log takes too."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def _one_line(head: str) -> str:
    return " ".join(head.split("\n"))


def _plain(comparison: Comparison) -> str:
    from rich.cells import cell_len

    shown, caption = fold(comparison)
    lines = [[_one_line(column.head) for column in shown]]
    lines += [[column.cell(row) for column in shown] for row in comparison.rows]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(shown))]

    def pad(text: str, column: Column, width: int) -> str:
        space = " " * (width - cell_len(text))
        return text + space if column.is_text else space + text

    aligned = (
        "  ".join(pad(*cell) for cell in zip(line, shown, widths, strict=True)) for line in lines
    )
    return "\n".join([*(line.rstrip() for line in aligned), "", caption, ""])


_MD_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?! |$))")


def _md(text: str) -> str:
    """Text in a Markdown table's cell: no emphasis, code, link, HTML, formula or further cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MD_SPECIAL.sub(r"\\\1", text).replace("www.", "www\\.")


def _markdown(comparison: Comparison) -> str:
    shown, caption = fold(comparison)

    def cell(column: Column, row: Row) -> str:
        return _md(column.cell(row)) if column.is_text else column.cell(row)

    lines = [
        [_one_line(column.head) for column in shown],
        [":--" if column.is_text else "--:" for column in shown],
        *([cell(column, row) for column in shown] for row in comparison.rows),
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", _md(caption), ""])


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "'": "{'}",
    "`": "{`}",
    "-": "{-}",  # two would become a dash
    "[": "{[}",  # at a row's start it would be an argument of the line break before it
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)


def _latex(comparison: Comparison) -> str:
    shown, caption = fold(comparison)
    lines = [[_one_line(column.head) for column in shown]]
    lines += [[column.cell(row) for column in shown] for row in comparison.rows]
    head, *body = (f"    {' & '.join(map(_tex, line))} \\\\" for line in lines)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{_tex(caption)}}}",
            f"  \\begin{{tabular}}{{{''.join('l' if c.is_text else 'r' for c in shown)}}}",
            "    \\toprule",
            head,
            "    \\midrule",
            *body,
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


# The wide forms too, which Japanese and Chinese spreadsheets take for the narrow ones.
_FORMULA = tuple("=+-@＝＋－＠")


def _unformula(value: Any) -> Any:
    """Text that a spreadsheet does not take for a formula."""
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


def _csv(comparison: Comparison) -> str:
    frame = comparison.frame
    for column in TEXT_COLUMNS:
        frame[column] = frame[column].map(_unformula)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _json(comparison: Comparison) -> str:
    return files.to_json(comparison.rows, indent=2, ascii_only=True) + "\n"
