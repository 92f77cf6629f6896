"""YAML text → frozen typed objects. Nothing in here imports torch.

In reading order: `schema` with a file per section and `block` (the keys), `own` (parts by
reference: a user's files, read and not run until they are needed), `identity` (what makes
two configs the same, also under old names), `yaml12` (text → values with their locations), `load`
(files, bases, `--set`), `problems` (error lines), `expand` (arms, zip, grid).
"""

from vshift.config.expand import Point, expand, refuse_study
from vshift.config.identity import config_hash, differences
from vshift.config.load import dump, load
from vshift.config.schema import Config, json_schema

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
