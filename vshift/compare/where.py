"""`--where`: a condition on runs, such as `network.name == preresnet and network.noise.rate < 0.5`.

    condition   and, or, not, ( )
    comparison  ==  !=  <  <=  >  >=  in  not in, also 0.1 <= network.noise.rate <= 0.5
    value       a number, true, false, null as in YAML; a word; "text in quotes"; [a, list]

A word that names a field (see `fields`) is that field, any other is text; where a comparison has no
such word, the first that is the end of a config key is a field, as `rate` in `rate < 0.5`. A run
that lacks a field has null there: it equals null, and is in no order. Python's parser finds the
structure of a text in which every word is blanked out; nothing is ever evaluated as code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any, NoReturn

from vshift.compare.fields import Fields
from vshift.config.yaml12 import parse_scalar
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord, number
from vshift.text import escape_control, format_value, natural

Condition = Callable[[RunRecord], bool]

_TOKEN = re.compile(
    r"""(?P<space>\s) | (?P<text>"[^"]*"|'[^']*')
    | (?P<sign>[=!<>]=|&&|\|\||[=!<>&|()\[\],"']) | (?P<word>[^\s()\[\],"'=!<>&|]+)""",
    re.VERBOSE,
)
_REFUSED = {
    "=": "`=` does not compare, `==` does; put text that holds a = into quotes",
    **dict.fromkeys(('"', "'"), "a quotation mark without its partner"),
    **dict.fromkeys(("&&", "||", "!", "&", "|"), "write and, or, not"),
}
_ADVICE = (
    "a comparison such as `network.noise.rate > 0.3` is wanted (==, !=, <, <=, >, >=, in, not in), "
    "joined by and, or; put text with spaces into quotes"
)


def parse_where(text: str, fields: Fields) -> Condition:
    """Parse a condition into a function of a run.

    Raises:
        VShiftError: it is no condition, or names a field that no run has; says where and what is
            allowed. The function raises it too, where a comparison makes no sense.
    """
    if len(text) > 2000:
        raise VShiftError(f"--where: a condition of {len(text):,} characters; at most 2,000")
    return _Parser(text.strip(), fields).parse()


class _Parser:
    """Turns Python's syntax tree of the blanked text, of a few kinds of nodes, into functions."""

    def __init__(self, text: str, fields: Fields) -> None:
        self.text, self.fields = text, fields

    def fail(self, at: int, what: str) -> NoReturn:
        before, after = escape_control(self.text[:at]), escape_control(self.text[at:])
        here = f"at `{after[:40]}`" if after else f"after `{before}`"
        raise VShiftError(f"--where {escape_control(self.text)}: {here}: {what}")

    def parse(self) -> Condition:
        source = _TOKEN.sub(self.blank, self.text)
        if len(re.findall(r"\(|\bnot\b", source)) > 50:
            self.fail(0, "more than 50 brackets and `not`s")
        try:
            return self.condition(ast.parse(source, mode="eval").body)
        except SyntaxError as error:
            at = error.offset - 1 if error.offset else len(source)  # 0 is the end
            if at >= len(source):
                self.fail(at, "a field or a value is missing here")
            self.fail(at, _ADVICE if error.msg == "invalid syntax" else f"{error.msg}; {_ADVICE}")
        except (MemoryError, RecursionError):
            self.fail(0, "nested too deep")

    def blank(self, token: re.Match[str]) -> str:
        """Replace a token by one of the same length, so that its place leads back to the text."""
        text = token.group()
        if token.lastgroup == "sign" and text in _REFUSED:
            self.fail(token.start(), _REFUSED[text])
        if token.lastgroup == "sign" or text in ("and", "or", "not", "in"):
            return text
        if token.lastgroup == "text":
            return f'"{"x" * (len(text) - 2)}"'
        return " " if token.lastgroup == "space" else "x" * len(text)

    def condition(self, node: ast.expr) -> Condition:
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value) for value in node.values]
            join = all if isinstance(node.op, ast.And) else any
            return lambda run: join(part(run) for part in parts)
        if isinstance(node, ast.UnaryOp):  # `not`, as no other sign gets this far
            inside = self.condition(node.operand)
            return lambda run: not inside(run)
        if not isinstance(node, ast.Compare):
            self.fail(node.end_col_offset or 0, _ADVICE)
        nodes = [node.left, *node.comparators]
        keys = [self.field(each) for each in nodes]
        if not any(keys):  # the first that is the end of a config key, as `rate`
            short = ((i, key) for i, each in enumerate(nodes) if (key := self.short_field(each)))
            first, key = next(short, (0, ""))
            if not key:
                for each in nodes:  # what is no value at all is said first
                    self.operand(each)
                word = self.word(nodes[0])
                hint = self.fields.suggest(word)
                self.fail(
                    node.col_offset,
                    f"no field is called {escape_control(word)}; {hint and f'{hint} '}a field is a "
                    "config key such as network.noise.rate or its last part, a key of summary.json "
                    "such as test_error, or name, seed, status",
                )
            keys[first] = key
        values = [self.operand(*pair) for pair in zip(nodes, keys, strict=True)]
        tests = [_TESTS[type(sign)] for sign in node.ops]
        steps = list(zip(values, tests, values[1:], strict=False))
        return lambda run: all(test(one(run), other(run)) for one, test, other in steps)

    def operand(self, node: ast.expr, key: str = "") -> Callable[[RunRecord], Any]:
        """A function from a run to its value: of the field `key`, or else of what is written."""
        word = self.word(node)
        if isinstance(node, ast.List):
            values = [self.operand(item) for item in node.elts]
            for item in filter(self.field, node.elts):
                what = f"a list holds values, and `{self.word(item)}` is a field"
                self.fail(node.col_offset, what)
            return lambda run: [value(run) for value in values]
        if key:
            key = self.fields.require(key, "--where", section=True)
            return lambda run: self.fields.value(run, key)
        if isinstance(node, ast.Name):
            value = _scalar(word)
        elif isinstance(node, ast.Constant) and len(str(node.value)) == len(word) - 2:
            value = word[1:-1]
        else:  # two texts side by side, which Python joins, are none
            self.fail(node.col_offset, _ADVICE)
        return lambda run: value

    def word(self, node: ast.expr) -> str:
        return self.text[node.col_offset : node.end_col_offset]

    def field(self, node: ast.expr) -> str:
        """The field that a word names in full; empty for a value."""
        word = self.word(node)
        known = self.fields.is_known(word) or word.split(".")[0] in self.fields.config_keys
        is_word = isinstance(node, ast.Name) and isinstance(_scalar(word), str)
        return word if known and is_word else ""

    def short_field(self, node: ast.expr) -> str:
        """The field that a word names by its end; empty for a value."""
        word = self.word(node)
        if not isinstance(node, ast.Name) or not isinstance(_scalar(word), str):
            return ""
        key = self.fields.resolve(word, "--where")
        return key if self.fields.is_known(key) else ""


def _scalar(word: str) -> Any:
    try:
        return parse_scalar(word)
    except ValueError as error:
        raise VShiftError(f"--where: {error}") from error


def _equal(one: Any, other: Any) -> bool:
    """Equality as in YAML: true is not 1, and 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _in(item: Any, container: Any) -> bool:
    if container is None:
        return False
    if isinstance(container, list):
        return any(_equal(entry, item) for entry in container)
    if isinstance(container, str) and isinstance(item, str):
        return item in container
    raise VShiftError(
        f"--where: {format_value(container)} contains nothing; `in` takes a list after it or, for "
        "a part of a text, a text"
    )


def _in_order(compare: Callable[[Any, Any], bool], one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    numbers = number(one), number(other)
    if None not in numbers:
        return compare(*numbers)
    if isinstance(one, str) and isinstance(other, str):
        return compare(natural(one), natural(other))
    raise VShiftError(
        f"--where: {format_value(one)} and {format_value(other)}: these have no order"
    )


_TESTS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda one, other: not _equal(one, other),
    ast.In: _in,
    ast.NotIn: lambda one, other: not _in(one, other),
    ast.Lt: lambda one, other: _in_order(operator.lt, one, other),
    ast.LtE: lambda one, other: _in_order(operator.le, one, other),
    ast.Gt: lambda one, other: _in_order(operator.gt, one, other),
    ast.GtE: lambda one, other: _in_order(operator.ge, one, other),
}
