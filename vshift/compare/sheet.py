"""A table as it is written: what comparisons, pivots and views become, and every format takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vshift.compare.fields import Row


@dataclass(frozen=True)
class Column:
    """`keep` orders what a narrow terminal leaves out: low numbers go first. A newline in the head
    is where it may break."""

    head: str
    keep: int = 50
    is_text: bool = False

    @property
    def line(self) -> str:
        """The head on one line."""
        return " ".join(self.head.split("\n"))


@dataclass(frozen=True)
class Sheet:
    """Text cells for people, and records for programs.

    Attributes:
        rows: a text for each column; control characters are escaped already.
        records: flat objects with full precision, for JSON and CSV; not always one for each row.
        labels: how many columns, from the left, say what a row is.
        panels: a narrow terminal gets the other columns in parts, one below the other, instead of
            leaving some out.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str
    records: Sequence[Row]
    notes: list[str] = field(default_factory=list)
    labels: int = 1
    panels: bool = False

    def without(self, labels: Sequence[int]) -> Sheet:
        """The same without some of the labels, by number."""
        kept = [i for i in range(len(self.columns)) if i not in labels]
        return replace(self.part(kept), labels=self.labels - len(labels))

    def part(self, kept: Sequence[int]) -> Sheet:
        """The same with some of the columns, by number."""
        return replace(
            self,
            columns=[self.columns[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows],
        )
