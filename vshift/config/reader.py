"""YAML text → a tree of values with places, by YAML 1.2's core schema.

PyYAML's own constructor reads YAML 1.1 (`no` is False, `012` is 10, `1e-3` is text) and keeps the
last of duplicate keys without a word, so only its parser is used. The parser's events are taken one
by one, which makes every limit below hold before memory or the stack is used up.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from vshift.config.tree import Node, Place, clean, show
from vshift.errors import ConfigError

MAX_DEPTH = 50
MAX_NODES = 100_000  # aliases count as often as they are used
MAX_PROBLEMS = 50
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")
_MAX_DIGITS = 1000
_NOT_YAML = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


def scalar(text: str) -> Any:
    """The value of an unquoted scalar.

    Raises:
        ValueError: for an integer of absurd length.
    """
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits; at most {_MAX_DIGITS}")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INF.fullmatch(text):
        return float(f"{infinite[1]}inf")
    return float("nan") if _NAN.fullmatch(text) else text


def read(text: str, source: str, *, inline: bool = False) -> Node:
    """The tree of one YAML document; an empty one is a null.

    Args:
        source: what messages call the text: a file's path, or `--set key=value`.
        inline: whether lines and columns would say nothing (`--set`).

    Raises:
        ConfigError: one line for each problem.
    """
    try:
        return _read(text, _FAST, source, inline)
    except ConfigError:
        # libyaml's wording and limits change with its version: messages come from PyYAML's own
        # parser, which has no limit on nesting and needs no stack for it.
        return _read(text, yaml.SafeLoader, source, inline)


def _read(text: str, loader: Any, source: str, inline: bool) -> Node:
    builder = _Builder(clean(source, 300), inline)
    with suppress(_Fatal):
        _parse(text, loader, builder)
    if builder.problems:
        raise ConfigError(*builder.problems)
    return builder.root or Node(None, builder.place(None))


def _parse(text: str, loader: Any, builder: _Builder) -> None:
    _refuse_characters(text, builder)
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        builder.complain(error.problem_mark, _syntax(error, text))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # what PyYAML lets through
        builder.complain(None, f"not valid YAML: {error}")


class _Fatal(Exception):
    """Reading on makes no sense; the problem is noted already."""


@dataclass
class _Open:
    """A mapping or list that has begun and not ended."""

    is_map: bool
    place: Place
    anchor: str | None
    mapping: dict[str, Node] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    key: Node | None = None  # the key whose value comes next
    size: int = 1  # nodes, with aliases expanded
    height: int = 1  # levels, with aliases expanded


@dataclass
class _Builder:
    """Puts events together; problems that allow reading on are collected."""

    source: str
    inline: bool
    problems: list[str] = field(default_factory=list)
    root: Node | None = None
    documents: int = 0
    open: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Node, int, int] | None] = field(
        default_factory=dict
    )  # None: still open

    def place(self, mark: Any) -> Place:
        if self.inline or mark is None:
            return Place(self.source)
        return Place(self.source, mark.line + 1, mark.column + 1)

    def complain(self, where: Any, what: str, *, fatal: bool = False) -> None:
        place = where if isinstance(where, Place) else self.place(where)
        self.problems.append(clean(f"{place}: {what}"))
        if fatal or len(self.problems) >= MAX_PROBLEMS:
            raise _Fatal

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._document(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._begin(event)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._end()
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)

    def _document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            self.complain(
                event.start_mark, "a second document (`---`); a config is one document", fatal=True
            )
        if event.version and tuple(event.version) != (1, 2):
            self.complain(event.start_mark, "%YAML 1.2 is what is read here; remove the directive")

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.complain(
                event.start_mark, f"the tag `{tag[:60]}` is not allowed; write the plain value"
            )

    def _begin(self, event: Any) -> None:
        self._refuse_tag(event)
        is_map = isinstance(event, yaml.MappingStartEvent)
        self.open.append(_Open(is_map, self.place(event.start_mark), event.anchor))
        self._refuse_depth(0)
        if event.anchor:
            self.anchors[event.anchor] = None

    def _end(self) -> None:
        done = self.open.pop()
        node = Node(done.mapping if done.is_map else done.items, done.place)
        self._add(node, done.anchor, done.size, done.height)

    def _scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        value = event.value
        try:
            value = scalar(value) if event.style in (None, "") else value
        except ValueError as error:
            self.complain(event.start_mark, str(error))
        if isinstance(value, str) and _NOT_TEXT.search(value):
            self.complain(event.start_mark, f"{show(value)} holds a character that is not text")
        self._add(Node(value, self.place(event.start_mark)), event.anchor, 1, 0)

    def _alias(self, event: Any) -> None:
        name = event.anchor
        if name not in self.anchors:
            self.complain(
                event.start_mark, f"`*{name}` stands for nothing: no `&{name}` above", fatal=True
            )
        target = self.anchors[name]
        if target is None:
            self.complain(
                event.start_mark, f"`*{name}` stands for a value it is part of", fatal=True
            )
        else:
            node, size, height = target
            self._refuse_depth(height)
            self._add(node, None, size, height)

    def _refuse_depth(self, more: int) -> None:
        if len(self.open) + more > MAX_DEPTH:
            self.complain(self.open[-1].place, f"nested over {MAX_DEPTH} levels deep", fatal=True)

    def _add(self, node: Node, anchor: str | None, size: int, height: int) -> None:
        """Put a finished node where it belongs: a key, a value, an entry, or the whole document."""
        if anchor:
            self.anchors[anchor] = (node, size, height)
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        top.size += size
        top.height = max(top.height, height + 1)
        if sum(level.size for level in self.open) > MAX_NODES:
            what = f"over {MAX_NODES:,} values, counting aliases as often as they are used"
            self.complain(node.place, what, fatal=True)
        if not top.is_map:
            top.items.append(node)
        elif top.key is None:
            top.key = node
        else:
            self._entry(top.mapping, top.key, node)
            top.key = None

    def _entry(self, mapping: dict[str, Node], key: Node, value: Node) -> None:
        if not isinstance(key.value, str):
            hint = "" if isinstance(key.value, (dict, list)) else f"; write '{show(key.value)}'"
            self.complain(key.place, f"{show(key.value)} as a key: keys are text{hint}")
        elif key.value == "<<":
            self.complain(
                key.place,
                "merge keys (<<) are not read; put what is shared in a file, name it in `base:`",
            )
        elif key.value in mapping:
            first = mapping[key.value].key
            line = "" if self.inline or first is None else f"; the first is at line {first.line}"
            self.complain(key.place, f"the key `{clean(key.value, 60)}` is there twice{line}")
        else:
            mapping[key.value] = replace(value, key=key.place)


def _refuse_characters(text: str, builder: _Builder) -> None:
    """Say where a character is that YAML does not allow; the parser gives a byte offset only."""
    found = _NOT_YAML.search(text)
    if found is None:
        return
    before = text[: found.start()]
    place = Place(
        builder.source,
        *(() if builder.inline else (before.count("\n") + 1, len(before) - before.rfind("\n"))),
    )
    if found[0] == "\ufeff":
        what = "a byte order mark; save the file as UTF-8 without one"
    else:
        what = f"the character U+{ord(found[0]):04X} is not allowed in YAML; remove it"
    builder.complain(place, what, fatal=True)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> str:
    """PyYAML's several lines in one, with advice for what people stumble over."""
    at = error.problem_mark.index if error.problem_mark else len(text)
    problem = error.problem or "the text ends too early"
    if text[at : at + 1] == "\t":
        return "a tab where YAML wants spaces; indent with spaces"
    if text[at : at + 1] in ("@", "`", "%") and "cannot start" in problem:
        return f"a value that starts with `{text[at]}` needs quotes"
    begun = ""
    if (
        error.context_mark
        and error.problem_mark
        and error.context_mark.line < error.problem_mark.line
    ):
        begun = f" ({error.context or 'begun'}, which starts at line {error.context_mark.line + 1})"
    advice = ""
    if "mapping values" in problem:
        advice = "; is the indentation right? a value that holds `: ` needs quotes"
    return f"not valid YAML: {problem}{begun}{advice}"
