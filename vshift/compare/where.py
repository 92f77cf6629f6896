"""`--where`: a condition on runs, such as `network.name == preresnet and network.noise.rate < 0.5`.

    condition   and, or, not, ( )
    comparison  ==  !=  <  <=  >  >=  in  not in, also 0.1 <= network.noise.rate <= 0.5
    value       a number, true, false, null as in YAML; a word; "text in quotes"; [a, list]

A word that names a field (see `fields`) is that field, any other is text. A run that lacks a field
has null there: it equals null, and is in no order. Nothing is ever evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from vshift.compare.fields import Fields
from vshift.config.reader import scalar
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord, number
from vshift.text import did_you_mean, escape_control, format_value, natural

Condition = Callable[[RunRecord], bool]

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"[^"]*"|'[^']*')
  | (?P<sign>==|!=|<=|>=|<|>|=|!|\(|\)|\[|\]|,|&&|\|\||["'])
  | (?P<word>[^\s()\[\],"'=!<>&|]+)
  )""",
    re.VERBOSE,
)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_OPERATORS = ("==", "!=", *_ORDERS, "in", "not")
_LONGEST, _DEEPEST = 2000, 50


@dataclass(frozen=True)
class _Token:
    kind: str  # text, sign, word or end
    text: str
    at: int

    def says(self, *words: str) -> bool:
        return self.kind in ("sign", "word") and self.text in words


@dataclass(frozen=True)
class _Operand:
    value: Callable[[RunRecord], Any]
    is_field: bool
    word: str


def parse_where(text: str, fields: Fields) -> Condition:
    """The condition that the text says, as a function of a run.

    Raises:
        VShiftError: it is no condition, or names a field that no run has; says where and what is
            allowed. The function raises it too, where a comparison makes no sense.
    """
    return _Parser(text, fields).parse()


class _Parser:
    """Recursive descent: each method takes what its name says from the front of the tokens."""

    def __init__(self, text: str, fields: Fields) -> None:
        self.text, self.fields = text, fields
        if len(text) > _LONGEST:
            raise VShiftError(f"--where: a condition of {len(text):,} characters; at most 2,000")
        self.tokens = list(self._split())
        self.depth = 0

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        end = len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            if match is None or match.lastgroup is None:  # one & or |
                self.fail(at, "`and` and `or` join comparisons")
            word, start = match[match.lastgroup], match.start(match.lastgroup)
            tokens.append(_Token(match.lastgroup, word, start))
            at = match.end()
        return [*tokens, _Token("end", "", end)]

    def fail(self, at: int, what: str) -> NoReturn:
        before, after = escape_control(self.text[:at]), escape_control(self.text[at:])
        here = f"after `{before.strip()}`" if not after.strip() else f"at `{after.strip()[:40]}`"
        raise VShiftError(f"--where {escape_control(self.text)}: {here}: {what}")

    @property
    def next(self) -> _Token:
        return self.tokens[0]

    def take(self) -> _Token:
        return self.tokens.pop(0)

    def parse(self) -> Condition:
        condition = self.any_of()
        if self.next.says("=", "!", "&&", "||", *_OPERATORS) or self.next.kind != "end":
            self.fail(self.next.at, _advice(self.next.text))
        return condition

    def any_of(self) -> Condition:
        parts = [self.all_of()]
        while self.next.says("or"):
            self.take()
            parts.append(self.all_of())
        return parts[0] if len(parts) == 1 else lambda run: any(part(run) for part in parts)

    def all_of(self) -> Condition:
        parts = [self.negated()]
        while self.next.says("and"):
            self.take()
            parts.append(self.negated())
        return parts[0] if len(parts) == 1 else lambda run: all(part(run) for part in parts)

    def negated(self) -> Condition:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail(self.next.at, f"nested over {_DEEPEST} levels deep")
        if self.next.says("not"):
            self.take()
            inside = self.negated()
            found: Condition = lambda run: not inside(run)  # noqa: E731
        elif self.next.says("("):
            opened = self.take()
            found = self.any_of()
            if not self.next.says(")"):
                self.fail(opened.at, "this bracket is never closed")
            self.take()
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def comparison(self) -> Condition:
        start = self.next.at
        operands, operators = [self.operand()], []
        while self.next.says(*_OPERATORS):
            operators.append(self.operator())
            operands.append(self.operand())
        if not operators:
            self.fail(self.next.at, _advice(self.next.text))
        if not any(operand.is_field for operand in operands):
            self.fail(start, self._no_field(operands[0].word))
        steps = list(zip(operands, operators, operands[1:], strict=False))
        return lambda run: all(
            _holds(one.value(run), sign, other.value(run)) for one, sign, other in steps
        )

    def operator(self) -> str:
        token = self.take()
        if not token.says("not"):
            return token.text
        if not self.next.says("in"):
            self.fail(self.next.at, "`not` stands before a comparison, or as `not in`")
        self.take()
        return "not in"

    def operand(self) -> _Operand:
        token = self.take()
        if token.says("["):
            return self.rest_of_list(token)
        if token.kind == "text":
            return _constant(token.text[1:-1], token.text)
        if token.kind != "word" or token.says("and", "or", "not", "in"):
            what = "a quotation mark without its partner" if token.says('"', "'") else ""
            self.fail(token.at, what or "a field or a value is missing here")
        return self._word(token.text)

    def rest_of_list(self, opened: _Token) -> _Operand:
        values: list[Any] = []
        while not self.next.says("]"):
            item = self.operand()
            if item.is_field:
                self.fail(opened.at, f"a list holds values, and `{item.word}` is a field")
            values.append(item.value)
            if self.next.says(","):
                self.take()
            elif not self.next.says("]"):
                self.fail(opened.at, "a list's values stand between [ and ], with commas")
        self.take()
        return _Operand(lambda run: [value(run) for value in values], False, "a list")

    def _word(self, word: str) -> _Operand:
        try:
            value = scalar(word)
        except ValueError as error:
            raise VShiftError(f"--where: {error}") from error
        if not isinstance(value, str):
            return _constant(value, word)
        if self.fields.is_known(word) or word.split(".")[0] in self.fields.config_keys:
            key = self.fields.require(word, "--where", section=True)
            return _Operand(lambda run: self.fields.value(run, key), True, word)
        return _constant(word, word)

    def _no_field(self, word: str) -> str:
        names = [*self.fields.config_keys, *self.fields.metrics, "name", "seed", "status"]
        leaf = word.rsplit(".", 1)[-1]
        near = [f"`{name}`" for name in names if name.rsplit(".", 1)[-1] == leaf]
        hint = did_you_mean(word, names) or (
            f"did you mean {' or '.join(near[:3])}?" if near else ""
        )
        return (
            f"no field is called {escape_control(word)}; {hint + ' ' if hint else ''}"
            "a field is a config key such as network.noise.rate, a key of summary.json such as "
            "test_error, or name, seed, status"
        )


def _constant(value: Any, word: str) -> _Operand:
    return _Operand(lambda run: value, False, word)


def _advice(sign: str) -> str:
    if sign == "=":
        return "`=` does not compare, `==` does; put text that holds a = into quotes"
    if sign in ("&&", "||", "!"):
        return "write and, or, not"
    return (
        "a comparison such as `network.noise.rate > 0.3` is wanted, joined by and, or; "
        "put text with spaces into quotes"
    )


def _holds(one: Any, sign: str, other: Any) -> bool:
    if sign in ("==", "!="):
        return _equal(one, other) == (sign == "==")
    if sign in ("in", "not in"):
        return _contains(other, one) == (sign == "in")
    return _in_order(one, sign, other)


def _equal(one: Any, other: Any) -> bool:
    """As YAML sees it: true is not 1, and 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _contains(container: Any, item: Any) -> bool:
    if container is None:
        return False
    if isinstance(container, list):
        return any(_equal(entry, item) for entry in container)
    if isinstance(container, str) and isinstance(item, str):
        return item in container
    raise VShiftError(
        f"--where: {format_value(container)} holds nothing; behind `in` stands a list or, for a "
        "part of "
        "a text, a text"
    )


def _in_order(one: Any, sign: str, other: Any) -> bool:
    if one is None or other is None:
        return False
    numbers = number(one), number(other)
    if None not in numbers:
        return _ORDERS[sign](*numbers)
    if isinstance(one, str) and isinstance(other, str):
        return _ORDERS[sign](natural(one), natural(other))
    raise VShiftError(
        f"--where: {format_value(one)} {sign} {format_value(other)}: these have no order"
    )
