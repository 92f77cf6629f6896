"""Run folders → tables. Importing this does not import torch."""

from vshift.compare.columns import sheet
from vshift.compare.formats import FORMATS, Format, render, write
from vshift.compare.request import Request, table_of
from vshift.compare.sheet import Column, Sheet
from vshift.compare.table import COLUMNS, Comparison, compare

__all__ = [
    "COLUMNS",
    "FORMATS",
    "Column",
    "Comparison",
    "Format",
    "Request",
    "Sheet",
    "compare",
    "render",
    "sheet",
    "table_of",
    "write",
]
