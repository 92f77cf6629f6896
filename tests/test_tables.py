"""The table of a live display; every other format is tested with what it shows."""

from __future__ import annotations

import pytest
from rich.console import Console

from vshift.tables import Column, Table, live_table, shorten_middle

COLUMNS = (
    Column("run", is_text=True),
    Column("state", is_text=True),
    Column("a", 1),
    Column("b", 2),
)
TABLE = Table(COLUMNS, [["study-one-rate=0.5 seed 3", "done", "12345678", "87654321"]], labels=2)


def drawn(width: int, style: str = "") -> list[str]:
    console = Console(width=width, force_terminal=bool(style), legacy_windows=False)
    with console.capture() as text:
        console.print(live_table(TABLE, width, [style]))
    return [line.rstrip() for line in text.get().splitlines()]


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (80, "study-one-rate=0.5 seed 3  done   12345678  87654321"),
        (36, "study-…e=0.5 seed 3  done   87654321"),
        (18, "stud…seed 3  done"),
    ],
)
def test_a_narrow_terminal_shortens_names_and_leaves_out_columns(width: int, row: str) -> None:
    head, body = drawn(width)
    assert body == row
    shown = {80: ["run", "state", "a", "b"], 36: ["run", "state", "b"], 18: ["run", "state"]}
    assert head.split() == shown[width]


def test_the_second_cell_has_the_rows_style() -> None:
    assert any("\x1b[31mdone" in line for line in drawn(80, "red"))


def test_names_lose_their_middle() -> None:
    assert shorten_middle("abc", 5) == "abc"
    assert shorten_middle("study-one-rate=0.5 seed 3", 16) == "study…0.5 seed 3"[-16:]
    assert len(shorten_middle("x" * 50, 16)) == 16
