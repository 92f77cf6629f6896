"""Run folders → tables. Importing this does not import torch."""

from vshift.compare.columns import to_table
from vshift.compare.request import Request, table_of
from vshift.compare.table import COLUMNS, Comparison, compare

__all__ = ["COLUMNS", "Comparison", "Request", "compare", "table_of", "to_table"]
