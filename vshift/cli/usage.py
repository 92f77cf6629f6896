"""Wrong command lines, answered as a wrong config is: what, what is allowed, what to write.

Typer brings its own click, or in earlier versions needs one, whose words differ: only the errors'
classes and attributes are read, and of their words what both versions say alike.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from vshift.errors import VShiftError
from vshift.text import PLAIN, escape_control, nearest, suggest

Parse = Callable[[Any, list[str]], list[str]]  # of a context and a command line
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
# click's words about a value → ours.
_VALUES = (
    (re.compile(r"not one of (.+?)\.?$", re.DOTALL), "not allowed; {hint}allowed: {words}"),
    (re.compile(r"valid integer"), "not a whole number"),
    (re.compile(r"valid (?:float|number)"), "not a number"),
    (re.compile(r"(?:greater than or equal to |x>=)([-\d.]+)"), "too small; at least {words}"),
    (re.compile(r"(?:less than or equal to |x<=)([-\d.]+)"), "too large; at most {words}"),
)
_TYPE = re.compile(r"^(  \S+) <[^> ]+>", re.MULTILINE)  # `  CONFIG <path>`
# A command for one thing → the one for several.
_FOR_SEVERAL = {"train": "vshift sweep"}


class Command(TyperCommand):
    """A command whose usage errors are VShiftErrors, and whose help any stdout can hold."""

    def get_help(self, ctx: Any) -> str:
        return _printable(super().get_help(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return _parse(super().parse_args, self, ctx, args)


class Commands(TyperGroup):
    """A group of commands whose usage errors are VShiftErrors, also of a command that is none."""

    def get_help(self, ctx: Any) -> str:
        return _printable(super().get_help(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return _parse(super().parse_args, self, ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if self.get_command(ctx, word) is not None:
            return super().resolve_command(ctx, args)
        names = self.list_commands(ctx)
        hint = suggest(word, names)
        if word.endswith((".yaml", ".yml")):
            hint = f"to train a config: `vshift train {escape_control(word)}`; "
        raise VShiftError(
            f"{_name(ctx)} {escape_control(word)}: there is no such command; {hint}"
            f"there are: {', '.join(names)}"
        )


class App(typer.Typer):
    """A Typer of `Command`s, whose help is plain text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=Commands, no_args_is_help=True, rich_markup_mode=None, **options)

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = Command, **options: Any
    ) -> Callable[[Any], Any]:
        return super().command(name, cls=cls, **options)


def _parse(parse: Parse, command: Any, ctx: Any, args: list[str]) -> list[str]:
    given = [*args]  # parsing empties them
    try:
        return parse(ctx, args)
    except _UsageError as error:
        if not given and isinstance(command, TyperGroup):  # not an error: the help
            raise
        raise _explained(command, ctx, given, error) from None


def _printable(text: str) -> str:
    """A help text in stdout's characters, without the types that Typer shows beside arguments."""
    text = _TYPE.sub(lambda found: found[1].ljust(len(found[0])), text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, PLAIN).decode(encoding)


def _name(ctx: Any) -> str:
    return str(ctx.command_path)


def _explained(command: Any, ctx: Any, given: Sequence[str], error: Any) -> VShiftError:
    """The usage error of a command line of these words, in our words."""
    parameter, option = getattr(error, "param", None), getattr(error, "option_name", None)
    help_line = f"; `{_name(ctx)} -h` explains its options"
    if hasattr(error, "possibilities"):
        what = _no_such_option(command, ctx, given, str(option)) + help_line
    elif option is not None:
        is_flag = "not take a value" in error.message
        what = f"{option} takes no value" if is_flag else f"{option}: its value is missing"
    elif parameter is None:
        what = _too_many(command, ctx, given) or error.message
    elif type(error).__name__ == "MissingParameter":
        text = (parameter.help or "").rstrip(".")
        what = f"{_called(parameter)} is missing" + (f" ({text})" if text else "") + help_line
    else:
        what = _bad_value(command, ctx, given, parameter, error.message)
    return VShiftError(f"{_name(ctx)}: {what}".replace("?; ", "? "))


def _called(parameter: Any) -> str:
    """`CONFIG`, or `--data SOURCE`."""
    metavar = parameter.metavar or ""
    is_argument = parameter.param_type_name == "argument"
    return metavar if is_argument else f"{parameter.opts[0]} {metavar}".rstrip()


def _parsed(command: Any, ctx: Any, given: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The raw values by parameter, and the words that are left over."""
    values, rest, _ = command.make_parser(ctx).parse_args([*given])
    return values, rest


def _no_such_option(command: Any, ctx: Any, given: Sequence[str], option: str) -> str:
    """Suggest the nearest option, or `--set` for a key of the config."""
    what, word = f"there is no option {escape_control(option)}", option.lstrip("-")
    options = {name.lstrip("-") for each in command.get_params(ctx) for name in each.opts}
    if "set" in options and word.removesuffix("s") not in options:
        from vshift.config.problems import find_keys

        keys = find_keys(word.replace("-", "_"))
        place = next(i for i, each in enumerate(given) if each.startswith(option))
        value = given[place].partition("=")[2] or "".join(given[place + 1 : place + 2])
        value = "…" if value.startswith("-") else escape_control(value) or "…"
        if keys:
            return f"{what}; write {' or '.join(f'--set {key}={value}' for key in keys[:3])}"
    near = nearest(word, {name for name in options if len(name) > 1})
    return f"{what}; did you mean `--{near}`?" if near else what


def _too_many(command: Any, ctx: Any, given: Sequence[str]) -> str:
    """Which words are one too many; empty if none is."""
    values, rest = _parsed(command, ctx, given)
    words = " ".join(map(escape_control, rest))
    taken = [each for each in command.get_params(ctx) if each.param_type_name == "argument"]
    if not rest or not taken:
        return f"takes no argument, and was given {words}" if rest else ""
    what = f"takes one {_called(taken[0])}, and `{words}` is too much"
    if "=" in rest[0] and any("--set" in each.opts for each in command.get_params(ctx)):
        return f"{what}; a change of the config is written --set {words}"
    several = _FOR_SEVERAL.get(command.name)
    first = escape_control(str(values[taken[0].name]))
    return f"{what}; several: `{several} {first} {words}`" if several else what


def _bad_value(command: Any, ctx: Any, given: Sequence[str], parameter: Any, message: str) -> str:
    value = _parsed(command, ctx, given)[0].get(parameter.name)
    values = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    is_option = parameter.param_type_name == "option"
    name = parameter.opts[0] if is_option else _called(parameter)
    for pattern, words in _VALUES:
        if found := pattern.search(message):
            allowed = re.findall(r"'([^']+)'", found[1]) if "hint" in words else found.groups()
            what = words.format(hint=suggest(values[-1], allowed), words=", ".join(allowed))
            return f"{name} {escape_control(' '.join(values))} is {what}"
    return f"{name}: {message.removeprefix('Value error, ').rstrip('.')}"
