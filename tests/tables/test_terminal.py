"""The table of a live display; what else is printed is tested with what it shows."""

from __future__ import annotations

import pytest
from rich.console import Console

from vshift.tables import Column, Table, live_table

COLUMNS = (
    Column("run", is_text=True), Column("state", 99, is_text=True), Column("epoch", 98),
    Column("a", 1), Column("b", 2),
)  # fmt: skip
TABLE = Table(
    COLUMNS, [["study-one-rate=0.5 seed 3", "running elsewhere", "1/9", "123456", "654321"]]
)


def drawn(width: int, style: str = "") -> list[str]:
    console = Console(width=width, force_terminal=bool(style), legacy_windows=False)
    with console.capture() as text:
        console.print(live_table(TABLE, width, [style]))
    return [line.rstrip() for line in text.get().splitlines()]


@pytest.mark.parametrize(
    ("width", "name", "rest"),
    [
        (90, "study-one-rate=0.5 seed 3", "running elsewhere    1/9  123456  654321"),
        (60, "study-…=0.5 seed 3", "running elsewhere    1/9  123456  654321"),
        (53, "study-…e=0.5 seed 3", "running elsewhere    1/9  654321"),
        (42, "study…0.5 seed 3", "running elsewhere    1/9"),
        (36, "stu…seed 3", "running elsewhere    1/9"),
    ],
)
def test_a_narrow_terminal_shortens_names_and_leaves_out_columns(
    width: int, name: str, rest: str
) -> None:
    head, body = drawn(width)
    assert len(body) <= width
    assert body == f"{name}  {rest}"
    assert ("a" in head.split(), "b" in head.split()) == ("123456" in rest, "654321" in rest)


def test_the_second_cell_has_the_rows_style() -> None:
    assert any("\x1b[31mrunning" in line for line in drawn(80, "red"))
