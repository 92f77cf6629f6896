"""What a table is: headings, text cells for people, and records for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Column:
    """A heading and how its cells are set.

    Attributes:
        head: a newline marks where it may break.
        priority: a narrow terminal leaves out columns of low priority first.
        is_text: aligned to the left, numbers to the right.
        together: columns of one word stay or go together; empty for a column by itself.
        note: what the caption says of it, where it is shown; several columns may share one.
    """

    head: str
    priority: int = 50
    is_text: bool = False
    together: str = ""
    note: str = ""

    @property
    def one_line(self) -> str:
        """The head on one line."""
        return " ".join(self.head.split("\n"))


@dataclass(frozen=True)
class Table:
    """Text cells for people, and records for programs.

    Attributes:
        rows: one text per column; control characters are escaped already.
        caption: what is said of the whole table; empty for nothing.
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

    @property
    def column_notes(self) -> list[str]:
        """What the caption says of the columns, each note once."""
        return list(dict.fromkeys(column.note for column in self.columns if column.note))

    @property
    def whole_caption(self) -> str:
        """The columns' notes and the caption: below the table, above it in LaTeX and HTML."""
        return " ".join(filter(None, [*self.column_notes, self.caption]))

    def without_notes(self) -> Table:
        """The table without its columns' notes, for a page or text that has them elsewhere."""
        return replace(self, columns=[replace(column, note="") for column in self.columns])

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
