"""The table for a terminal: as many columns as fit, and never half a number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vshift.compare.sheet import Sheet

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2  # between columns: one of padding, one of the box's invisible line
_NAME = 14  # a label is folded to this width before a column is left out
_LEAST_NAME = 8


def render_terminal(sheet: Sheet, width: int) -> str:
    """The table with colours for a terminal of so many characters."""
    from rich.console import Console
    from rich.text import Text

    caption = sheet.caption
    if sheet.panels:
        parts = _parts(sheet, width)
    else:
        kept = _fitting(sheet, width)
        dropped = [c.line for i, c in enumerate(sheet.columns) if i not in kept]
        parts = [kept]
        if dropped:
            heads = ", ".join(dropped)
            caption += f" Too narrow for: {heads}; a wider terminal or a pipe shows them."
    buffer = io.StringIO()
    for number, kept in enumerate(parts):
        part = sheet.part(kept)
        # Narrower than one number and a bit of a name, the terminal itself has to wrap.
        console = Console(file=buffer, force_terminal=True, width=max(width, _least(part)))
        if number:
            console.print()
        console.print(_table(part))
    Console(file=buffer, force_terminal=True, width=width).print(Text(f"\n{caption}", style="dim"))
    return buffer.getvalue()


def _table(sheet: Sheet) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(sheet.columns):
        is_label = index < sheet.labels
        table.add_column(
            Text(column.head),  # never markup: a name may say [red]
            justify="left" if column.is_text else "right",
            overflow="fold",
            no_wrap=not is_label,
            min_width=None if is_label else _width(sheet, index),
        )
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def _width(sheet: Sheet, index: int) -> int:
    from rich.cells import cell_len

    cells = [row[index] for row in sheet.rows]
    return max(cell_len(text) for text in [*cells, *sheet.columns[index].head.split("\n")])


def _widths(sheet: Sheet, label: int) -> list[int]:
    """Every column's width with the gap behind it; labels are folded to `label`."""
    full = [_width(sheet, index) for index in range(len(sheet.columns))]
    return [
        (min(label, width) if index < sheet.labels else width) + _GAP
        for index, width in enumerate(full)
    ]


def _least(sheet: Sheet) -> int:
    return sum(_widths(sheet, _LEAST_NAME)) - _GAP


def _fitting(sheet: Sheet, width: int) -> list[int]:
    """The numbers of the columns that fit, the important ones first; the labels and one more
    always stay."""
    widths, kept = _widths(sheet, _NAME), list(range(sheet.labels))
    others = range(sheet.labels, len(sheet.columns))
    for index in sorted(others, key=lambda i: -sheet.columns[i].keep):
        needed = sum(widths[i] for i in [*kept, index]) - _GAP
        if needed <= width or len(kept) == sheet.labels:
            kept.append(index)
    return sorted(kept)


def _parts(sheet: Sheet, width: int) -> Sequence[list[int]]:
    """The columns in parts that fit, each with the labels and at least one more column."""
    widths, labels = _widths(sheet, _NAME), list(range(sheet.labels))
    parts = [[*labels]]
    for index in range(sheet.labels, len(sheet.columns)):
        full = sum(widths[i] for i in [*parts[-1], index]) - _GAP > width
        if full and len(parts[-1]) > sheet.labels:
            parts.append([*labels])
        parts[-1].append(index)
    return parts
