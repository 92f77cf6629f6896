"""YAML text → frozen typed objects. Nothing in here imports torch.

In reading order: `schema` (the keys), `reader` (text → tree), `bases` and `load` (files, `--set`),
`problems` (error lines), `grid` (sweeps: arms and grid), `identity` (what makes two configs the
same), `dump` (a config written out again).
"""

from vshift.config.dump import dump, json_schema
from vshift.config.grid import Point, expand, refuse_study
from vshift.config.identity import config_hash, differences
from vshift.config.load import load
from vshift.config.schema import Config

__all__ = [
    "Config",
    "Point",
    "config_hash",
    "differences",
    "dump",
    "expand",
    "json_schema",
    "load",
    "refuse_study",
]
