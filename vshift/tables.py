"""A table as text: for a terminal, a pipe, Markdown, LaTeX, HTML, CSV and JSON.

The only writer of tables. Names come from files that anybody may have written, so each format
escapes them in its own way such that they stay text.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, TextIO

from vshift.errors import VShiftError
from vshift.text import PLAINER, escape_control, pluralize, suggest, to_json, to_jsonable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Format = Literal["table", "md", "latex", "csv", "json", "html"]
FORMATS: tuple[Format, ...] = ("table", "md", "latex", "csv", "json", "html")


@dataclass(frozen=True)
class Column:
    """A heading and how its cells are set.

    Attributes:
        head: a newline marks where it may break.
        priority: a narrow terminal leaves out columns of low priority first.
        is_text: aligned to the left, numbers to the right.
        together: columns of one word stay or go together; empty for a column by itself.
    """

    head: str
    priority: int = 50
    is_text: bool = False
    together: str = ""

    @property
    def one_line(self) -> str:
        """The head on one line."""
        return " ".join(self.head.split("\n"))


@dataclass(frozen=True)
class Table:
    """Text cells for people, and records for programs.

    Attributes:
        rows: one text per column; control characters are escaped already.
        caption: printed below (above in LaTeX and HTML); empty for none.
        records: flat objects with full precision, for JSON and CSV; not always one per row.
        notes: for stderr; no format prints them.
        labels: how many columns, from the left, say what a row is.
        name: of LaTeX's label; letters, digits and hyphens.
        panels: a narrow terminal gets the other columns in parts, one below the other, instead of
            leaving some out.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    records: Sequence[Any] = ()
    notes: list[str] = field(default_factory=list)
    labels: int = 1
    panels: bool = False
    name: str = "vshift"

    def without(self, labels: Sequence[int]) -> Table:
        """The table without some of its label columns, given by number."""
        kept = [i for i in range(len(self.columns)) if i not in labels]
        return replace(self.part(kept), labels=self.labels - len(labels))

    def part(self, kept: Sequence[int]) -> Table:
        """The table with some of its columns, given by number."""
        return replace(
            self,
            columns=[self.columns[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows],
        )


def render(
    table: Table, kind: str, *, terminal_width: int | None = None, verbose: bool = False
) -> str:
    """The table as text that ends in a newline.

    Args:
        kind: one of FORMATS.
        terminal_width: in characters; `table` then has colours and leaves out what does not fit.
            Without it nothing is ever cut.
        verbose: the whole caption on a terminal, too.

    Raises:
        VShiftError: there is no such format.
    """
    writers = {
        "table": _plain, "md": markdown, "latex": latex, "csv": _csv, "json": _json,
        "html": html_table,
    }  # fmt: skip
    if kind not in writers:
        raise VShiftError(
            f"--format {escape_control(kind)}: no such format; {suggest(kind, FORMATS)}"
            f"allowed: {', '.join(FORMATS)}"
        )
    if kind == "table" and terminal_width is not None:
        return render_terminal(table, terminal_width, verbose)
    return writers[kind](table)


def write(
    table: Table,
    kind: str,
    stream: TextIO,
    *,
    terminal: bool | None = None,
    verbose: bool = False,
) -> None:
    """Print the table; `terminal` says whether the stream is one (default: ask it)."""
    is_terminal = stream.isatty() if terminal is None else terminal
    width = shutil.get_terminal_size().columns if is_terminal else None
    text = render(table, kind, terminal_width=width, verbose=verbose)
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # an ASCII terminal or log; a backslash would be a command in LaTeX
        otherwise = "replace" if kind == "latex" else "backslashreplace"
        text = text.translate(PLAINER).encode(encoding, otherwise).decode(encoding)
    stream.write(text)
    stream.flush()


def _plain(table: Table) -> str:
    from rich.cells import cell_len

    columns = []
    for column, *cells in zip(table.columns, *table.rows, strict=True):
        texts = [column.one_line, *cells]
        width = max(map(cell_len, texts))
        spaces = [" " * (width - cell_len(text)) for text in texts]
        pairs = zip(texts, spaces, strict=True)
        columns.append([t + space if column.is_text else space + t for t, space in pairs])
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([*lines, *_below(table.caption)])


def _below(caption: str) -> list[str]:
    """The lines after a table, the last one empty to end the text in a newline."""
    return ["", caption, ""] if caption else [""]


# The wide forms too, which Japanese and Chinese spreadsheets take for the narrow ones.
_FORMULA = tuple("=+-@＝＋－＠")


def _unformula(value: Any) -> Any:
    """Text that a spreadsheet does not take for a formula."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = escape_control(value)
    if text.lstrip()[:1] not in _FORMULA:
        return text
    try:
        is_number = math.isfinite(float(text))
    except ValueError:
        is_number = False
    return text if is_number else f"'{text}"


def _csv(table: Table) -> str:
    """The records with full precision; a value that is missing is an empty cell."""
    keys = dict.fromkeys(key for record in table.records for key in record)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_unformula(key) for key in keys])
    for record in table.records:
        writer.writerow([_unformula(to_jsonable(record.get(key))) for key in keys])
    return buffer.getvalue()


def _json(table: Table) -> str:
    return to_json(table.records, indent=2, ascii_only=True) + "\n"


# ---- Markdown, LaTeX, HTML

_MD_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?! |$))")


def _md(text: str) -> str:
    """Text in a Markdown table's cell: no emphasis, code, link, HTML, formula or further cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MD_SPECIAL.sub(r"\\\1", text).replace("www.", "www\\.")


def markdown(table: Table) -> str:
    """A table in the dialect of GitHub and pandoc, the caption below it."""
    lines = [
        [_md(column.one_line) for column in table.columns],
        [":--" if column.is_text else "--:" for column in table.columns],
        *([_md(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *_below(_md(table.caption))])


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
    "`": "{`}",
    "[": "{[}",  # at a row's start it would be an argument of the line break before it
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "β": r"$\beta$",
    "−": "$-$",
    "–": "--",
}


_TEX_PAIRS = re.compile(r"([-'])(?=\1)")  # two would become a dash, or a closing quotation mark


def _tex(text: str) -> str:
    return _TEX_PAIRS.sub(r"{\1}", "".join(_TEX.get(char, char) for char in text))


def latex(table: Table) -> str:
    """A booktabs table with its caption and a label, `tab:` and the table's name."""
    lines = [[column.one_line for column in table.columns], *table.rows]
    head, *body = (f"    {' & '.join(map(_tex, line))} \\\\" for line in lines)
    alignment = "".join("l" if column.is_text else "r" for column in table.columns)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            *([f"  \\caption{{{_tex(table.caption)}}}"] if table.caption else []),
            *([f"  \\label{{tab:{table.name}}}"] if table.caption else []),
            f"  \\begin{{tabular}}{{{alignment}}}",
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


def html_table(table: Table) -> str:
    """One `<table class="vshift">`, a fragment in ASCII for a page with styles of its own.

    Numbers have the class `number`; a row's labels are its headers.
    """
    kinds = ["" if column.is_text else ' class="number"' for column in table.columns]

    def cell(index: int, text: str) -> str:
        tag, scope = ("th", ' scope="row"') if index < table.labels else ("td", "")
        return f"<{tag}{scope}{kinds[index]}>{html.escape(text)}</{tag}>"

    heads = (
        f'<th scope="col"{kind}>{html.escape(column.one_line)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = ("".join(cell(i, text) for i, text in enumerate(row)) for row in table.rows)
    lines = [
        '<table class="vshift">',
        *([f"  <caption>{html.escape(table.caption)}</caption>"] if table.caption else []),
        f"  <thead><tr>{''.join(heads)}</tr></thead>",
        "  <tbody>",
        *(f"    <tr>{row}</tr>" for row in rows),
        "  </tbody>",
        "</table>",
        "",
    ]
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode()


def page_style() -> str:
    """The style sheet of every page that has such tables."""
    return (resources.files("vshift") / "style.css").read_text("utf-8")


# ---- terminal

_GAP = 2  # between columns: one of padding, one of the box's invisible line
_NAME = 14  # a label is broken, between its parts, to this width before a column is left out
_LIVE_NAME = 16  # the same in a live table, where a label is one line
_LEAST_NAME = 8
_CAPTION_LINES = 3
# Where a name may be broken: after a sign between its words, but in no number.
_BREAK = re.compile(r"(?<=[-_=/ ])(?=.)|(?<=\.)(?=\D)")


def render_terminal(table: Table, width: int, verbose: bool = False) -> str:
    """The table with colours for a terminal of `width` characters.

    Args:
        verbose: the whole caption, not its first three lines.
    """
    from rich.console import Console
    from rich.text import Text

    hidden: list[str] = []
    least = [_least_label(table, index) for index in range(table.labels)]
    if table.panels:
        parts = _parts(table, width, least)
    else:
        parts = [_fitting(table, width, least)]
        hidden = [c.one_line for i, c in enumerate(table.columns) if i not in parts[0]]
    buffer = io.StringIO()
    for number, kept in enumerate(parts):
        part = table.part(kept)
        others = sum(_width(part, i) + _GAP for i in range(part.labels, len(part.columns)))
        labels = _label_widths(part, width - others, least)
        # Narrower than one number and a bit of a name, the terminal itself has to wrap.
        whole = sum(size + _GAP for size in labels) + others - _GAP
        console = Console(file=buffer, force_terminal=True, width=max(width, whole))
        if number:
            console.print()
        console.print(_rich_table(part, labels))
    if caption := _caption(table.caption, hidden, width, verbose):
        console = Console(file=buffer, force_terminal=True, width=width)
        console.print(Text(f"\n{caption}", style="dim"))
    return buffer.getvalue()


def _caption(text: str, hidden: Sequence[str], width: int, verbose: bool) -> str:
    """The sentences of a caption that fit three lines, and which columns are not shown."""
    if verbose:
        rest = f"Too narrow for: {', '.join(hidden)}; a wider terminal or a pipe shows them."
        return f"{text} {rest}".strip() if hidden else text
    kept = re.split(r"(?<=\.) ", text) if text else []
    more = [f"{pluralize(len(hidden), 'more column')}: --verbose."] if hidden else []
    while kept and len(textwrap.wrap(" ".join([*kept, *more]), width)) > _CAPTION_LINES:
        kept.pop()
        more = more or ["More: --verbose."]
    return " ".join([*kept, *more])


def _least_label(table: Table, index: int) -> int:
    """The width down to which a label may be broken: never inside a part of it."""
    from rich.cells import cell_len

    cells = (row[index] for row in table.rows)
    parts = [cell_len(part.rstrip()) for text in cells for part in _BREAK.split(text)]
    return max(min(_NAME, _width(table, index)), *parts, 0)


def _label_widths(table: Table, room: int, least: Sequence[int]) -> list[int]:
    """The labels' widths where all of them together have some room: in full if possible."""
    full = [_width(table, index) for index in range(table.labels)]
    left = room - sum(least) - _GAP * (len(least) - 1)
    if left < 0:  # even single parts have to be folded
        return [max(_LEAST_NAME, min(size, room // len(least) - _GAP)) for size in least]
    widths = []
    for whole, size in zip(full, least, strict=True):
        widths.append(min(whole, size + left))
        left -= widths[-1] - size
    return widths


def _broken(text: str, width: int) -> str:
    """The text on lines of at most a width, broken after `-`, `_`, `.`, `=`, `/` and spaces."""
    from rich.cells import cell_len

    lines = [""]
    for part in _BREAK.split(text):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _rich_table(table: Table, labels: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False
    )
    for index, column in enumerate(table.columns):
        size = labels[index] if index < table.labels else _width(table, index)
        drawn.add_column(
            Text(column.head),  # never markup: a name may say [red]
            justify="left" if column.is_text else "right",
            overflow="fold",
            no_wrap=index >= table.labels,
            min_width=size,
            max_width=size,
        )
    for row in table.rows:
        names = [_broken(text, size) for text, size in zip(row, labels, strict=False)]
        drawn.add_row(*map(Text, [*names, *row[table.labels :]]))
    return drawn


def live_table(table: Table, width: int, styles: Sequence[str]) -> RichTable:
    """The table for a display that is drawn again and again: every row is one line.

    The first column is shortened in its middle, and columns that do not fit are left out, except
    the two of highest priority.

    Args:
        styles: one per row, for its second cell.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    least = [min(_LIVE_NAME, _width(table, 0))]
    table = table.part(_fitting(table, width, least, others_kept=2))
    others = [_width(table, index) for index in range(1, len(table.columns))]
    name = max(_LEAST_NAME, min(_width(table, 0), width - sum(others) - _GAP * len(others)))
    drawn = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_edge=False)
    for column, size in zip(table.columns, [name, *others], strict=True):
        side: Literal["left", "right"] = "left" if column.is_text else "right"
        drawn.add_column(
            Text(column.one_line), justify=side, no_wrap=True, min_width=size, max_width=size
        )
    for (label, word, *cells), style in zip(table.rows, styles, strict=True):
        drawn.add_row(Text(shorten_middle(label, name)), Text(word, style), *map(Text, cells))
    return drawn


def shorten_middle(text: str, width: int) -> str:
    """The text without its middle: names begin with the study and end with what is special."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _width(table: Table, index: int) -> int:
    from rich.cells import cell_len

    cells = [row[index] for row in table.rows]
    return max(cell_len(text) for text in [*cells, *table.columns[index].head.split("\n")])


def _widths(table: Table, least: Sequence[int]) -> list[int]:
    """Every column's width with the gap after it; labels are broken as far as they may be."""
    others = [_width(table, index) for index in range(table.labels, len(table.columns))]
    return [width + _GAP for width in (*least, *others)]


def _fitting(table: Table, width: int, least: Sequence[int], others_kept: int = 1) -> list[int]:
    """The numbers of the columns that fit, those of high priority first.

    The labels and `others_kept` others always stay.

    Args:
        least: the labels' smallest widths.
    """
    widths, kept = _widths(table, least), list(range(table.labels))
    others = range(table.labels, len(table.columns))
    tried: set[int] = set()
    for index in sorted(others, key=lambda i: -table.columns[i].priority):
        word = table.columns[index].together
        some = [i for i in others if word and table.columns[i].together == word] or [index]
        needed = sum(widths[i] for i in [*kept, *some]) - _GAP
        is_new = tried.isdisjoint(some)
        if is_new and (needed <= width or len(kept) < table.labels + others_kept):
            kept += some
        tried.update(some)
    return sorted(kept)


def _parts(table: Table, width: int, least: Sequence[int]) -> Sequence[list[int]]:
    """The columns in parts that fit, each with the labels and at least one more column."""
    widths, labels = _widths(table, least), list(range(table.labels))
    parts = [[*labels]]
    for index in range(table.labels, len(table.columns)):
        full = sum(widths[i] for i in [*parts[-1], index]) - _GAP > width
        if full and len(parts[-1]) > table.labels:
            parts.append([*labels])
        parts[-1].append(index)
    return parts
