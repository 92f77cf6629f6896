"""`--where`: a condition on runs, such as `network.name == preresnet and network.noise.rate < 0.5`.

    condition   and, or, not, ( )
    comparison  ==  !=  <  <=  >  >=  in  not in, also 0.1 <= network.noise.rate <= 0.5
    value       a number, true, false, null as in YAML; a word; "text in quotes"; [a, list]

A word that names a field (see `fields`) is that field, any other is text. A run that lacks a field
has null there: it equals null, and is in no order. Python's parser finds the structure, after every
word and text is replaced by a placeholder; nothing is ever evaluated as code.
"""

from __future__ import annotations

import ast
import operator
import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NoReturn

from vshift.compare.fields import OWN, Fields, same_leaf
from vshift.config.yaml12 import parse_scalar
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord, number
from vshift.text import did_you_mean, escape_control, format_value, natural

Condition = Callable[[RunRecord], bool]
Value = Callable[[RunRecord], Any]

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"[^"]*"|'[^']*')
  | (?P<sign>[=!<>]=|&&|\|\||[=!<>&|()\[\],"'])
  | (?P<word>[^\s()\[\],"'=!<>&|]+)
  )""",
    re.VERBOSE,
)
_REFUSED = {
    "=": "`=` does not compare, `==` does; put text that holds a = into quotes",
    '"': "a quotation mark without its partner",
    "'": "a quotation mark without its partner",
    **dict.fromkeys(("&&", "||", "!", "&", "|"), "write and, or, not"),
}
_ADVICE = (
    "a comparison such as `network.noise.rate > 0.3` is wanted (==, !=, <, <=, >, >=, in, not in), "
    "joined by and, or; put text with spaces into quotes"
)
_LONGEST, _MOST_NESTED = 2000, 50


def parse_where(text: str, fields: Fields) -> Condition:
    """The condition that the text says, as a function of a run.

    Raises:
        VShiftError: it is no condition, or names a field that no run has; says where and what is
            allowed. The function raises it too, where a comparison makes no sense.
    """
    return _Parser(text, fields).parse()


class _Parser:
    """Turns Python's syntax tree of the condition, of a few kinds of nodes, into functions."""

    def __init__(self, text: str, fields: Fields) -> None:
        self.text, self.fields = text, fields
        self.tokens: list[re.Match[str]] = []
        self.columns: list[int] = []  # of the tokens in the text that Python parses

    def parse(self) -> Condition:
        if len(self.text) > _LONGEST:
            raise VShiftError(
                f"--where: a condition of {len(self.text):,} characters; at most 2,000"
            )
        source = self._with_placeholders()
        if sum(source.split().count(word) for word in ("(", "not")) > _MOST_NESTED:
            self._fail(0, f"more than {_MOST_NESTED} brackets and `not`s")
        try:
            return self._condition(ast.parse(source, mode="eval").body)
        except SyntaxError as error:
            column = error.offset - 1 if error.offset else len(source)  # 0 is the end
            if column >= len(source):
                self._fail(column, "a field or a value is missing here")
            reason = "" if error.msg == "invalid syntax" else f"{error.msg}; "
            self._fail(column, f"{reason}{_ADVICE}")
        except (MemoryError, RecursionError):
            self._fail(0, "nested too deep")

    def _with_placeholders(self) -> str:
        """The condition as Python can parse it: each word and text as a name, `w` and its index."""
        source, at, end = "", 0, len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            assert match is not None  # every character is a sign or part of a word
            token = match[match.lastgroup or 0]
            self.columns.append(len(source))
            self.tokens.append(match)
            if match.lastgroup == "sign" and token in _REFUSED:
                self._fail(len(source), _REFUSED[token])
            is_kept = match.lastgroup == "sign" or token in ("and", "or", "not", "in")
            source += f"{token if is_kept else f'w{len(self.tokens) - 1}'} "
            at = match.end()
        return source.rstrip()

    def _fail(self, column: int, what: str) -> NoReturn:
        """Say what is wrong at a column of the text that Python parses."""
        index = bisect_right(self.columns, column) - 1
        at = len(self.text)
        if self.tokens and (index < len(self.tokens) - 1 or column <= self.columns[-1]):
            match = self.tokens[index]
            at = match.start(match.lastgroup or 0)
        before, after = escape_control(self.text[:at]), escape_control(self.text[at:])
        here = f"at `{after.strip()[:40]}`" if after.strip() else f"after `{before.strip()}`"
        raise VShiftError(f"--where {escape_control(self.text)}: {here}: {what}")

    def _condition(self, node: ast.expr) -> Condition:
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(value) for value in node.values]
            join = all if isinstance(node.op, ast.And) else any
            return lambda run: join(part(run) for part in parts)
        if isinstance(node, ast.UnaryOp):  # `not`, as no other sign is let through
            inside = self._condition(node.operand)
            return lambda run: not inside(run)
        if not isinstance(node, ast.Compare):
            self._fail(node.end_col_offset or 0, _ADVICE)
        nodes = [node.left, *node.comparators]
        values = [self._operand(each) for each in nodes]
        if not any(map(self._is_field, nodes)):
            self._fail(node.col_offset, self._no_field(nodes[0]))
        tests = [_TESTS[type(sign)] for sign in node.ops]
        steps = list(zip(values, tests, values[1:], strict=False))
        return lambda run: all(test(one(run), other(run)) for one, test, other in steps)

    def _operand(self, node: ast.expr) -> Value:
        if isinstance(node, ast.List):
            values = [self._operand(item) for item in node.elts]
            for item in filter(self._is_field, node.elts):
                what = f"a list holds values, and `{self._word(item)}` is a field"
                self._fail(node.col_offset, what)
            return lambda run: [value(run) for value in values]
        if not isinstance(node, ast.Name):
            self._fail(node.col_offset, _ADVICE)
        word = self._word(node)
        if self._is_field(node):
            key = self.fields.require(word, "--where", section=True)
            return lambda run: self.fields.value(run, key)
        value = word[1:-1] if self._token(node).lastgroup == "text" else _scalar(word)
        return lambda run: value

    def _token(self, name: ast.Name) -> re.Match[str]:
        return self.tokens[int(name.id[1:])]

    def _word(self, node: ast.expr) -> str:
        return self._token(node).group().strip() if isinstance(node, ast.Name) else "a list"

    def _is_field(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.Name) or self._token(node).lastgroup == "text":
            return False
        word = self._word(node)
        known = self.fields.is_known(word) or word.split(".")[0] in self.fields.config_keys
        return known and isinstance(_scalar(word), str)

    def _no_field(self, node: ast.expr) -> str:
        word = self._word(node)
        names = [*self.fields.config_keys, *self.fields.metrics, *OWN]
        hint = did_you_mean(word, names) or same_leaf(word, names)
        return (
            f"no field is called {escape_control(word)}; {hint + ' ' if hint else ''}"
            "a field is a config key such as network.noise.rate, a key of summary.json such as "
            "test_error, or name, seed, status"
        )


def _scalar(word: str) -> Any:
    try:
        return parse_scalar(word)
    except ValueError as error:
        raise VShiftError(f"--where: {error}") from error


def _equal(one: Any, other: Any) -> bool:
    """As YAML sees it: true is not 1, and 1 is 1.0."""
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


def _in_order(compare: Callable[[Any, Any], bool], sign: str) -> Callable[[Any, Any], bool]:
    def test(one: Any, other: Any) -> bool:
        if one is None or other is None:
            return False
        numbers = number(one), number(other)
        if None not in numbers:
            return compare(*numbers)
        if isinstance(one, str) and isinstance(other, str):
            return compare(natural(one), natural(other))
        raise VShiftError(
            f"--where: {format_value(one)} {sign} {format_value(other)}: these have no order"
        )

    return test


_TESTS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda one, other: not _equal(one, other),
    ast.In: _in,
    ast.NotIn: lambda item, container: not _in(item, container),
    ast.Lt: _in_order(operator.lt, "<"),
    ast.LtE: _in_order(operator.le, "<="),
    ast.Gt: _in_order(operator.gt, ">"),
    ast.GtE: _in_order(operator.ge, ">="),
}
