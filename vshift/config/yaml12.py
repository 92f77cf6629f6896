"""YAML 1.2, core schema: text → values that know where they were written, and values → text.

PyYAML's own constructor reads YAML 1.1 (`no` is False, `012` is 10, `1e-3` is text) and silently
keeps the last of duplicate keys, so only its parser is used. Its events are taken one by one, so
that every limit below holds before memory or the stack is used up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import yaml

from vshift.errors import ConfigError
from vshift.text import one_line, show_value

MAX_DEPTH = 50
MAX_VALUES = 100_000  # aliases count as often as they are used
MAX_PROBLEMS = 50
_MAX_DIGITS = 1000
_FAST_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PARSER_ERRORS = (yaml.YAMLError, ValueError, OverflowError)  # what PyYAML lets through

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_NOT_YAML = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
# A path whose backslashes were read as escapes: `"C:\temp"` has a tab in it.
_WINDOWS = re.compile(r"[A-Za-z]:|\\")
_ESCAPES = (
    "in double quotes a backslash begins an escape; a Windows path goes into single quotes, "
    "'C:\\data', or is written with slashes, C:/data"
)
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """Where something was written: `configs/a.yaml:7:5` (counted from 1), or `--set epochs=3`."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Node:
    """A scalar, a dict[str, Node] or a list[Node], with its location and that of its key."""

    value: Any
    location: SourceLocation
    key: SourceLocation | None = None

    @property
    def start(self) -> SourceLocation:
        """Where its `key: value` begins."""
        return self.key or self.location

    def child(self, key: str | int) -> Node | None:
        """The entry of a mapping or list; None if there is none."""
        if isinstance(self.value, list) and isinstance(key, int):
            return next(iter(self.value[key : key + 1]), None)
        return self.value.get(key) if isinstance(self.value, dict) else None

    def to_python(self) -> Any:
        """The value without locations; every mapping and list is a new one."""
        if isinstance(self.value, dict):
            return {key: child.to_python() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.to_python() for child in self.value]
        return self.value


def from_python(value: Any, location: SourceLocation) -> Node:
    """The reverse of `to_python`, with one location for everything."""
    if isinstance(value, dict):
        value = {key: from_python(child, location) for key, child in value.items()}
    elif isinstance(value, list):
        value = [from_python(child, location) for child in value]
    return Node(value, location, location)


def parse_scalar(text: str) -> Any:
    """The value of an unquoted scalar.

    Raises:
        ValueError: for an integer of absurd length.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits; at most {_MAX_DIGITS}")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinite = _INF.fullmatch(text)
    return float(f"{infinite[1]}inf") if infinite else text


def parse(text: str, source: str, *, inline: bool = False) -> Node:
    """Read one YAML document; an empty one is null.

    Args:
        source: what messages call the text: a file's path, or `--set key=value`.
        inline: leave out line and column, which mean nothing in `--set`.

    Raises:
        ConfigError: one line per problem.
    """
    with suppress(*_PARSER_ERRORS):
        return _Reader(text, _FAST_PARSER, source, inline).document()
    # libyaml's wording and limits change with its version: messages come from PyYAML's own parser,
    # which has no limit on nesting and needs no stack for it.
    reader = _Reader(text, yaml.SafeLoader, source, inline)
    try:
        return reader.document()
    except yaml.MarkedYAMLError as error:
        reader.fail(error.problem_mark, reader.syntax_problem(error))
    except _PARSER_ERRORS as error:
        reader.fail(None, f"not valid YAML: {error}")


class _Reader:
    """Builds nodes from a parser's events; problems that allow reading on are collected."""

    def __init__(self, text: str, parser: Any, source: str, inline: bool) -> None:
        self.text, self.source, self.inline = text, one_line(source, 300), inline
        self.events: Iterator[Any] = yaml.parse(text, Loader=parser)
        self.problems: list[str] = []
        self.anchors: dict[str, Node | None] = {}  # None: its value is not complete yet
        self.values = 0

    def document(self) -> Node:
        root = None
        found = _NOT_YAML.search(self.text)
        if found:  # the parser would give a byte offset only
            what = f"the character U+{ord(found[0]):04X} is not allowed in YAML; remove it"
            before = self.text[: found.start()]
            line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
            self.fail(yaml.Mark(self.source, found.start(), line, column, None, 0), what)
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self.fail(event.start_mark, "a second document (`---`); a config is one")
                if event.version and tuple(event.version) != (1, 2):
                    what = "only YAML 1.2 is supported; remove the directive"
                    self.complain(event.start_mark, what)
            elif isinstance(event, yaml.NodeEvent):
                root = self.node(event, 0)
        if self.problems:
            raise ConfigError(*self.problems)
        return root or Node(None, SourceLocation(self.source))

    def node(self, event: Any, depth: int) -> Node:
        """The node that begins with this event, inside `depth` mappings and lists."""
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth)
        location = self.location(event.start_mark)
        self.count(1, location)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            self.complain(location, f"the tag `{tag}` is not allowed; write the plain value")
        if event.anchor:
            self.anchors[event.anchor] = None
        if not isinstance(event, yaml.ScalarEvent) and depth == MAX_DEPTH:
            self.fail(location, f"nested over {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.scalar(event), location)
        elif isinstance(event, yaml.MappingStartEvent):
            node = Node(self.mapping(depth + 1), location)
        else:
            entries = self.events_until(yaml.SequenceEndEvent)
            node = Node([self.node(entry, depth + 1) for entry in entries], location)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def events_until(self, end: type) -> Iterator[Any]:
        return itertools.takewhile(lambda event: not isinstance(event, end), self.events)

    def scalar(self, event: Any) -> Any:
        value = event.value
        try:
            value = parse_scalar(value) if event.style in (None, "") else value
        except ValueError as error:
            self.complain(event.start_mark, str(error))
        if event.style == '"' and _WINDOWS.match(value) and not value.isprintable():
            self.complain(event.start_mark, f"a path with control characters: {_ESCAPES}")
        if isinstance(value, str) and _NOT_TEXT.search(value):
            what = f"{show_value(value)} contains a character that is not text"
            self.complain(event.start_mark, what)
        return value

    def mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for event in self.events_until(yaml.MappingEndEvent):
            node = self.node(event, depth)
            value = self.node(next(self.events), depth)
            key, shown, problem = node.value, show_value(node.value), ""
            if isinstance(key, dict | list):
                problem = f"{shown} cannot be a key"
            elif not isinstance(key, str):
                problem = f"{shown} is not text, as keys are; write '{shown}'"
            elif key == "<<":
                what = "put what is shared in a file under `base:`"
                problem = f"merge keys (<<) are not supported; {what}"
            elif key in entries:
                problem = f"duplicate key `{one_line(key, 60)}`"
                if not self.inline:
                    problem += f"; the first is on line {entries[key].start.line}"
            if problem:
                self.complain(node.location, problem)
            else:
                entries[key] = replace(value, key=node.location)
        return entries

    def alias(self, event: Any, depth: int) -> Node:
        name = event.anchor
        if name not in self.anchors:
            self.fail(
                event.start_mark,
                f"unknown alias `*{name}`: there is no anchor `&{name}` above; text that starts "
                f"with `*` needs quotes{self.quoting(name)}",
            )
        node = self.anchors[name]
        if node is None:
            self.fail(event.start_mark, f"the alias `*{name}` is inside the value it refers to")
        size, height = _size_and_height(node)
        self.count(size, node.location)
        if depth + height > MAX_DEPTH:
            self.fail(event.start_mark, f"nested over {MAX_DEPTH} levels deep")
        return node

    def count(self, values: int, location: SourceLocation) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            what = f"over {MAX_VALUES:,} values, counting aliases as often as they are used"
            self.fail(location, what)

    def location(self, mark: Any) -> SourceLocation:
        if self.inline or mark is None:
            return SourceLocation(self.source)
        return SourceLocation(self.source, mark.line + 1, mark.column + 1)

    def complain(self, where: Any, what: str) -> None:
        location = where if isinstance(where, SourceLocation) else self.location(where)
        self.problems.append(one_line(f"{location}: {what}"))
        if len(self.problems) >= MAX_PROBLEMS:
            raise ConfigError(*self.problems)

    def fail(self, where: Any, what: str) -> NoReturn:
        """Complain where reading on makes no sense."""
        self.complain(where, what)
        raise ConfigError(*self.problems)

    def quoting(self, name: str) -> str:
        """How an alias that was meant as text is written: a shell takes a pair of quotes off."""
        return f""": '"*{name}"'""" if self.inline else f': "*{name}"'

    def syntax_problem(self, error: yaml.MarkedYAMLError) -> str:
        """PyYAML's several lines in one, with advice on common slips."""
        mark, context = error.problem_mark, error.context_mark
        problem = error.problem or "the text ends too early"
        char = self.text[mark.index : mark.index + 1] if mark else ""
        if char == "\t":
            return "a tab where YAML wants spaces; indent with spaces"
        if char and char in "@`%" and "cannot start" in problem:
            return f"a value that starts with `{char}` needs quotes"
        if error.context == "while scanning an alias":
            return "a value that starts with `*` needs quotes"
        begun = ""
        if context and mark and context.line < mark.line:
            begun = f" ({error.context or 'begun'}, which starts at line {context.line + 1})"
        advice = ""
        if "escape" in problem:
            return f"{problem}; {_ESCAPES}"
        if "mapping values" in problem:
            advice = "; is the indentation right? a value that contains `: ` needs quotes"
        return f"not valid YAML: {problem}{begun}{advice}"


def _size_and_height(node: Node) -> tuple[int, int]:
    """The number of values in a node, itself included, and its levels of mappings and lists."""
    if not isinstance(node.value, dict | list):
        return 1, 0
    children = node.value.values() if isinstance(node.value, dict) else node.value
    inside = [_size_and_height(child) for child in children]
    return 1 + sum(size for size, _ in inside), 1 + max((height for _, height in inside), default=0)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else; lists stay on their line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        style: str | None = "'"
        with suppress(ValueError):
            style = None if isinstance(parse_scalar(value), str) else "'"
        if not value.isprintable():  # PyYAML loses some line breaks in every other style
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def list(self, value: list[Any]) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(list, _Dumper.list)


def to_yaml(values: dict[str, Any]) -> str:
    """The text that `parse` reads as these values again."""
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=2**31,
        default_flow_style=False,
    )
    return text
