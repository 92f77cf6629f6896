"""A table for a terminal: colours, names that are broken or shortened, columns left out."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vshift.tables.table import Table
from vshift.text import pluralize, shorten_middle

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_GAP = 2  # between columns: one of padding, one of the box's invisible line
_NAME = 14  # a label is broken, between its parts, to this width before a column is left out
_LIVE_NAME = 16  # the same in a live table, where a label is one line
_LEAST_NAME = 8
_CAPTION_LINES = 3
_MORE = "More: compare --verbose."  # also below the table that ends a sweep
# Where a name may be broken: after a sign between its words, but in no number.
_BREAK = re.compile(r"(?<=[-_=/ ])(?=.)|(?<=\.)(?=\D)")


def render_terminal(table: Table, width: int, brief: bool = False) -> str:
    """The table with colours for a terminal of `width` characters.

    Args:
        brief: of the caption the columns' notes, and of the rest what fits three lines.
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
    shown = table if table.panels else table.part(parts[0])
    if caption := _caption(shown, hidden, width, brief):
        console = Console(file=buffer, force_terminal=True, width=width)
        console.print(Text(f"\n{caption}", style="dim"))
    return buffer.getvalue()


def _caption(table: Table, hidden: Sequence[str], width: int, brief: bool) -> str:
    """The caption and which columns are not shown.

    If brief, what the columns' notes say, which the numbers need, and of the other sentences those
    that fit three lines.
    """
    text, notes = table.whole_caption, table.column_notes
    if not brief:
        rest = f"Too narrow for: {', '.join(hidden)}; a wider terminal or a pipe shows them."
        return f"{text} {rest}".strip() if hidden else text
    kept = re.split(r"(?<=\.) ", table.caption) if table.caption else []
    more = [f"{pluralize(len(hidden), 'column')} left out.", _MORE] if hidden else []
    while kept and len(textwrap.wrap(" ".join([*notes, *kept, *more]), width)) > _CAPTION_LINES:
        kept.pop()
        more = more or [_MORE]
    return " ".join([*notes, *kept, *more])


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
            Text(column.head), justify=side, no_wrap=True, min_width=size, max_width=size
        )
    for (label, word, *cells), style in zip(table.rows, styles, strict=True):
        drawn.add_row(Text(shorten_middle(label, name)), Text(word, style), *map(Text, cells))
    return drawn


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
