"""Runs as a table for a terminal of any width, and as plain text for a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vshift.live.look import Seen
from vshift.text import NONE, format_number

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {
    "running": "cyan",
    "silent": "yellow",
    "interrupted": "yellow",
    "done": "green",
    "failed": "red",
    "diverged": "red",
    "damaged": "red",
}
_HEADS = ("run", "status", "epoch", "test acc %", "shift mean", "images/s", "left", "age")
# In this order columns give way on a narrow terminal.
_GIVE_WAY = ("images/s", "shift mean", "age", "left", "test acc %")


def cells(seen: Seen) -> dict[str, str]:
    """Head → text of one run's row."""
    score = format_number(seen.accuracy, 2)
    if seen.accuracy is None and seen.loss is not None:
        score = f"loss {format_number(seen.loss, 3)}"
    epochs = NONE if seen.epochs is None else str(seen.epochs)
    values = (
        f"{seen.name} seed {seen.seed}",
        seen.status,
        f"{seen.epoch}/{epochs}",
        score,
        format_number(seen.shift, 3),
        format_number(seen.speed, 0),
        duration(seen.left),
        NONE if seen.status == "done" else duration(seen.age),
    )
    return dict(zip(_HEADS, values, strict=True))


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3 h 05`, `2 d 04 h`."""
    if seconds is None:
        return NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


def counts(runs: Sequence[Seen]) -> str:
    """`2 running, 1 failed, 5 done`."""
    words = [seen.status for seen in runs]
    parts = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
    return ", ".join(parts) or "no runs yet"


def plain(runs: Sequence[Seen]) -> str:
    """Aligned text for a pipe or a log: every column, nothing cut, no colour."""
    from rich.cells import cell_len

    lines = [dict(zip(_HEADS, _HEADS, strict=True)), *map(cells, runs)]
    widths = {head: max(cell_len(line[head]) for line in lines) for head in _HEADS}
    text = [
        "  ".join(line[h] + " " * (widths[h] - cell_len(line[h])) for h in _HEADS).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", counts(runs), ""])


def table(runs: Sequence[Seen], width: int, height: int) -> RenderableType:
    """The runs that fit a terminal, with colours; what does not fit is counted below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    heads = fitting(runs, width)
    widths = {head: column_width(head, runs) for head in heads}
    name = max(8, min(widths["run"], width - sum(widths[h] + 2 for h in heads[1:])))
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for head in heads:
        least = name if head == "run" else widths[head]
        side: Literal["left", "right"] = "left" if head in ("run", "status") else "right"
        drawn.add_column(Text(head), justify=side, no_wrap=True, min_width=least, max_width=least)
    room = max(1, height - 5)
    for seen in runs[:room]:
        row = cells(seen)
        row["run"] = shortened(row["run"], name)
        style = _STYLES.get(seen.status, "")
        drawn.add_row(*(Text(row[h], style=style if h == "status" else "") for h in heads))
    more = f", {len(runs) - room} more below" if len(runs) > room else ""
    return Group(drawn, Text(f"\n{counts(runs)}{more}. q leaves; training goes on.", style="dim"))


def fitting(runs: Sequence[Seen], width: int) -> list[str]:
    """The columns that fit so many characters beside 16 of a run's name."""
    heads = list(_HEADS)
    widths = {head: column_width(head, runs) + 2 for head in heads}
    widths["run"] = min(widths["run"], 18)
    for head in _GIVE_WAY:
        if sum(widths[h] for h in heads) <= width:
            break
        heads.remove(head)
    return heads


def column_width(head: str, runs: Sequence[Seen]) -> int:
    return max([len(head), *(len(cells(seen)[head]) for seen in runs)])


def shortened(text: str, width: int) -> str:
    """Without its middle: names begin with the study and end with what is special."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
