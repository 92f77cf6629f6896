"""Rows of layers.jsonl, of the epochs asked for only: the file is the largest of a run folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vshift.errors import RunError
from vshift.runs import files
from vshift.runs.folder import LAYERS

Row = dict[str, Any]


def layer_rows(folder: Path, epochs: Iterable[int]) -> list[Row]:
    """The rows of these epochs, in the file's order, without one torn last line.

    Most of a long run's lines are of other epochs. They are told by how a line begins, which is
    many times faster than parsing it; a line that begins in another way is parsed to be sure.

    Raises:
        RunError: a line before the last one is damaged, named as file:line.
    """
    path = folder / LAYERS
    wanted = set(epochs)
    begins = tuple(b'{"epoch": %d,' % epoch for epoch in wanted)
    rows = []
    lines = (files.read_bytes(path) or b"").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.startswith(b'{"epoch": ') and not line.startswith(begins):
            continue
        if not line.strip():
            continue
        try:
            row = files.from_json(line)
        except ValueError as error:
            if not any(later.strip() for later in lines[number:]):
                break
            raise RunError(f"{path}:{number} is damaged: {error}") from error
        if row.get("epoch") in wanted:
            rows.append(row)
    return rows
