"""A config file, its bases and `--set` → a `Config`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from vshift.config.bases import resolve
from vshift.config.problems import explain
from vshift.config.reader import MAX_DEPTH, read
from vshift.config.renames import upgrade
from vshift.config.schema import NAME_LENGTH, RESERVED, Config
from vshift.config.tree import Node, Place, assign, clean, plain, wrap
from vshift.errors import ConfigError

AnyPath = str | os.PathLike[str]


def load(path: AnyPath, sets: Sequence[str] = (), seed: int | None = None) -> Config:
    """Read, join, override and validate a config.

    Args:
        sets: `key=value` texts of `--set`, applied in order after the bases.
        seed: instead of the config's seeds.

    Raises:
        ConfigError: one line for each problem.
    """
    seeds = None if seed is None else [seed]
    return build(gather(path, sets, seeds))


def gather(path: AnyPath, sets: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Node:
    """Everything that makes up a config, not yet validated: bases, file, `--set`, seeds, name."""
    tree = resolve(Path(path))
    if Path(path).with_name("run.json").is_file():  # a run folder's own, maybe of an old version
        tree = _upgraded(tree)
    if "name" not in tree.value:
        tree = put(tree, ["name"], wrap(folder_name(Path(path).stem), tree.place))
    tree = apply(tree, sets)
    if seeds is not None:
        place = Place("--seed " + " --seed ".join(str(seed) for seed in seeds))
        tree = put(tree, ["seeds"], wrap(list(seeds), place))
    return tree


def _upgraded(tree: Node) -> Node:
    """The tree with today's keys; the places of its values are lost where it had old ones."""
    old = plain(tree)
    new = upgrade(old)
    return tree if new == old else wrap(new, Place(tree.place.source))


def build(tree: Node) -> Config:
    """Validate a tree."""
    try:
        return Config.model_validate(plain(tree))
    except ValidationError as error:
        raise ConfigError(*explain(error, tree)) from None


def apply(tree: Node, sets: Sequence[str]) -> Node:
    """The tree with every `--set key=value` put in; all malformed ones in one error."""
    problems: list[str] = []
    for text in sets:
        try:
            tree = _apply(tree, text)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return tree


def _apply(tree: Node, text: str) -> Node:
    key, equals, value = text.partition("=")
    source = clean(f"--set {text}", 120)
    key = key.strip()
    if not equals:
        raise ConfigError(f"{source}: no `=`; write --set key=value, for instance --set epochs=5")
    if key.split(".")[0] == "base":
        raise ConfigError(f"{source}: `base` is read before --set; write it in a file")
    node = read(value, source, inline=True)
    return put(tree, split_key(key, source), replace(node, key=node.place))


def split_key(key: str, source: object) -> list[str]:
    """The parts of a dotted key. What follows `grid.`, `zip.`, `arms.<arm>.` is one key."""
    parts = key.split(".", {"grid": 1, "zip": 1, "arms": 2}.get(key.split(".")[0], -1))
    if not all(part and part == part.strip() for part in parts):
        what = f"`{clean(key, 60)}` is not a" if key else "no"
        raise ConfigError(f"{source}: {what} dotted key such as network.noise.rate")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{source}: a key of {len(parts)} parts; at most {MAX_DEPTH}")
    return parts


def put(tree: Node, keys: list[str], node: Node) -> Node:
    """`assign`, with its complaints as a ConfigError at the new value's place."""
    try:
        return assign(tree, keys, node)
    except ValueError as error:
        place = node.key or node.place
        raise ConfigError(clean(f"{place}: {error}")) from None


def folder_name(text: str) -> str:
    """The nearest text that can name a run folder."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).lstrip("._=+-")
    safe = f"run-{safe}" if RESERVED.fullmatch(safe) else safe
    return safe[:NAME_LENGTH] or "run"
