"""A config on its way to a `Config`: values that know where they were written.

Files, `--set` and grid entries all become trees of `Node`; putting them together never loses the
place of a value, so that an error about the result points at the line that caused it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

Key = str | int
Path = tuple[Key, ...]
LONGEST_LINE = 1000  # characters of a message
LONGEST_VALUE = 60


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: `configs/a.yaml:7:5` (counted from 1), or `--set epochs=3`."""

    source: str
    line: int | None = None
    column: int | None = None

    @property
    def order(self) -> tuple[str, int, int]:
        return self.source, self.line or 0, self.column or 0

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Node:
    """A scalar, a dict[str, Node] or a list[Node]; `key` is the place of its key."""

    value: Any
    place: Place
    key: Place | None = None


def plain(node: Node) -> Any:
    """The Python value, without places; every mapping and list is a new one."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def wrap(value: Any, place: Place) -> Node:
    """The reverse of `plain`, with one place for everything."""
    if isinstance(value, dict):
        value = {key: wrap(child, place) for key, child in value.items()}
    elif isinstance(value, list):
        value = [wrap(child, place) for child in value]
    return Node(value, place, place)


def child(node: Node, key: Key) -> Node | None:
    """The entry of a mapping or list; None if there is none."""
    if isinstance(node.value, dict):
        return node.value.get(key)
    if isinstance(node.value, list) and isinstance(key, int) and 0 <= key < len(node.value):
        found: Node = node.value[key]
        return found
    return None


def _other_kind(below: Node, above: Node) -> bool:
    """Whether `name` or `kind` says that two sections are different things."""
    for tag in ("name", "kind"):
        one, two = child(below, tag), child(above, tag)
        if one and two and one.value != two.value:
            return True
    return False


def merge(below: Node, above: Node, *, top: bool = True) -> Node:
    """Deep merge; `above` wins. Mappings are joined, lists and scalars replaced.

    A section whose `name` or `kind` differs is replaced too: the depth of a base's preresnet means
    nothing to the wrn that a file puts in its place. The config's own `name` is no kind.
    """
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    if not top and _other_kind(below, above):
        return above
    joined = dict(below.value)
    for key, node in above.value.items():
        joined[key] = merge(joined[key], node, top=False) if key in joined else node
    return replace(above, value=joined)


def assign(tree: Node, keys: list[str], node: Node) -> Node:
    """The tree with `node` at a dotted key; missing mappings on the way are created.

    Raises:
        ValueError: with the reason, if the key leads through a scalar or past a list's end.
    """
    return _assign(tree, keys, node, ())


def _assign(tree: Node, keys: list[str], node: Node, done: Path) -> Node:
    if not keys:
        return node
    key, rest = keys[0], keys[1:]
    here = dotted(done)
    if isinstance(tree.value, list):
        index = _index(key, len(tree.value), here)
        items = list(tree.value)
        items[index] = _assign(items[index], rest, node, (*done, index))
        return replace(tree, value=items)
    if tree.value is None:
        tree = replace(tree, value={}, place=node.place, key=node.key or tree.key)
    if not isinstance(tree.value, dict):
        raise ValueError(f"`{here}` is {show(tree.value)}, which has no keys")
    below = tree.value.get(key) or Node(None, node.place, node.key)
    return replace(tree, value={**tree.value, key: _assign(below, rest, node, (*done, key))})


def _index(key: str, length: int, here: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", key, re.ASCII):
        raise ValueError(f"`{here}` is a list; say which entry, for instance `{here}.0`")
    if length == 0:
        raise ValueError(f"`{here}` is an empty list")
    if int(key) >= length:
        raise ValueError(f"`{here}` has entries 0 to {length - 1}; there is no {key}")
    return int(key)


def dotted(path: Path) -> str:
    return ".".join(str(key) for key in path)


def show(value: Any) -> str:
    """A value as a message prints it: short, on one line, spelled as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value) if not isinstance(value, str) else value
    text = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
    return repr(text) if isinstance(value, str) else text


def clean(text: str, longest: int = LONGEST_LINE) -> str:
    """One line that is safe to print: control characters escaped, the end cut off."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
