"""The table for a terminal: as many columns as fit, and never half a number."""

from __future__ import annotations

import io

from vshift.compare.columns import Column, fold
from vshift.compare.table import Comparison, Row

_GAP = 2  # between columns: one of padding, one of the box's invisible line
_NAME = 14  # a name is folded to this width before a column is left out
_LEAST_NAME = 8


def render_terminal(comparison: Comparison, width: int) -> str:
    """The table with colours for a terminal of so many characters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown, caption = fold(comparison)
    shown, dropped = _fitting(shown, comparison.rows, width)
    if dropped:
        caption += f" Too narrow for: {', '.join(dropped)}; a wider terminal or a pipe shows them."
    numbers = [_width(column, comparison.rows) for column in shown[1:]]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for column, least in zip(shown, [None, *numbers], strict=True):
        table.add_column(
            Text(column.head),  # never markup: a name may say [red]
            justify="left" if column.is_text else "right",
            overflow="fold",
            no_wrap=least is not None,
            min_width=least,
        )
    for row in comparison.rows:
        table.add_row(*(Text(column.cell(row)) for column in shown))
    # Narrower than one number and a bit of a name, the terminal itself has to wrap.
    least_width = sum(numbers) + _GAP * len(numbers) + _LEAST_NAME
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=True, width=max(width, least_width))
    console.print(table)
    console.print(Text(f"\n{caption}", style="dim"), width=width)
    return buffer.getvalue()


def _width(column: Column, rows: list[Row]) -> int:
    from rich.cells import cell_len

    cells = [column.cell(row) for row in rows]
    return max(cell_len(text) for text in [*cells, *column.head.split("\n")])


def _fitting(shown: list[Column], rows: list[Row], width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit, and the heads of those left out."""
    kept = list(shown)
    widths = {column: _width(column, rows) + _GAP for column in shown}
    widths[kept[0]] = min(_NAME + _GAP, widths[kept[0]])
    while len(kept) > 2 and sum(widths[column] for column in kept) - _GAP > width:
        kept.remove(min(kept, key=lambda column: column.keep))
    return kept, [" ".join(column.head.split("\n")) for column in shown if column not in kept]
