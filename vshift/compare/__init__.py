"""Run folders → tables. Importing this does not import torch."""

from vshift.compare.formats import FORMATS, Format, render, write
from vshift.compare.table import COLUMNS, Comparison, compare

__all__ = ["COLUMNS", "FORMATS", "Comparison", "Format", "compare", "render", "write"]
