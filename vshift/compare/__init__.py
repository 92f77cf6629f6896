"""Tables that compare runs. Importing this package does not import torch or pandas."""

from vshift.compare.columns import to_table
from vshift.compare.options import CompareOptions, table_of
from vshift.compare.table import COLUMNS, Comparison, compare

__all__ = ["COLUMNS", "CompareOptions", "Comparison", "compare", "table_of", "to_table"]
