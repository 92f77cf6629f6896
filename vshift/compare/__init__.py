"""Run folders → tables. Importing this does not import torch."""

from vshift.compare.columns import sheet
from vshift.compare.formats import FORMATS, Format, render, write
from vshift.compare.sheet import Column, Sheet
from vshift.compare.table import COLUMNS, Comparison, compare

__all__ = [
    "COLUMNS",
    "FORMATS",
    "Column",
    "Comparison",
    "Format",
    "Sheet",
    "compare",
    "render",
    "sheet",
    "write",
]
