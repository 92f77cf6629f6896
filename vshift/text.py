"""Formatting for people: numbers, p values, durations, plurals, lists, escaping.

Names in files may have been written by anybody, so whatever is printed passes `escape_control`.
"""

from __future__ import annotations

import codecs
import difflib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import takewhile
from pathlib import PurePath
from typing import Any

NONE = "–"  # a value that is missing
LEVEL = 0.05  # of tests, two-sided: a p below it is significant

# ---- numbers


def format_number(value: float | None, digits: int, sign: str = "") -> str:
    """A number with fixed decimals and a real minus sign; `sign="+"` writes plus signs too."""
    if value is None:
        return NONE
    # + 0.0 after rounding: no −0.00
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def format_integer(value: float | None) -> str:
    """A whole number with thousands separators."""
    return NONE if value is None else f"{round(value):,}"


def format_significant(value: float | None, digits: int = 4) -> str:
    """A number with this many significant digits; below a million without a power of ten."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text and abs(value) < 1e6 else text


def format_spread(
    value: float | None, spread: float | None, sign: str = "", digits: int = 2
) -> str:
    """`8.43 ± 0.21`, or without the spread where there is none."""
    number = format_number(value, digits, sign)
    if value is None or spread is None:
        return number
    return f"{number} ± {format_number(spread, digits)}"


def supported_decimals(value: float, error: float | None) -> int:
    """The decimals of a value that its standard error supports.

    Two digits of the error where it begins with 100 to 354, otherwise one: the rule of the Particle
    Data Group (Review of Particle Physics, introduction, section 5.3). At most four significant
    digits of the value, and three without an error.
    """
    usable = error if error and math.isfinite(error) else None
    magnitude = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    if usable is None:
        return max(2 - magnitude, 0)
    exponent = math.floor(math.log10(usable))
    return max(min(3 - magnitude, (usable < 3.55 * 10.0**exponent) - exponent), 0)


def format_estimate(value: float | None, error: float | None) -> str:
    """`8.43 ± 0.21`, with the decimals that the standard error supports; without one if it is 0."""
    if value is None or math.isnan(value):
        return NONE
    digits = supported_decimals(value, error)
    shown = round(error, digits) if error and math.isfinite(error) else None
    return format_spread(value, shown or None, digits=digits)


def format_p(p: float | None) -> str:
    """`p = 0.025`, `p < 0.001`, `p = 1`; empty where there was no test.

    Three decimals, and near LEVEL as many as tell its side: `p = 0.0496`.
    """
    if p is None:
        return ""
    if p >= 0.9995:  # 1 is Holm's limit, which many rows reach
        return "p = 1" if p == 1 else "p > 0.999"
    digits = 3
    while p != LEVEL and round(p, digits) == LEVEL:
        digits += 1
    return "p < 0.001" if p < 0.001 else f"p = {p:.{digits}f}"


def format_duration(seconds: float | None) -> str:
    """`50 s`, `12 min`, `3 h 20 min`, `4 d 6 h`."""
    if seconds is None:
        return NONE
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


# ---- words


def pluralize(number: int, noun: str, plural: str | None = None) -> str:
    """`1 run`, `2 runs`, `1,200 runs`; `plural` where it takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def join_words(parts: Sequence[str], word: str = "and") -> str:
    """`a, b and c`."""
    return f" {word} ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def list_names(names: Sequence[str], limit: int = 4, noun: str = "") -> str:
    """`a, b, c, d and 3 more`, or with a noun `and 3 more keys`; control characters escaped."""
    shown = ", ".join(map(escape_control, names[:limit]))
    hidden = len(names) - limit
    return f"{shown} and {hidden:,} more{noun and f' {noun}'}" if hidden > 0 else shown


def short_labels(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with, if what is left still is a name."""
    escaped = [escape_control(name) for name in names]
    words = [name.split("-") for name in escaped]
    same = takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    start = sum(len(column[0]) + 1 for column in same) if len(escaped) > 1 else 0
    rests = [name[start:] for name in escaped]
    return rests if all(rest[:1].isalpha() for rest in rests) else escaped


def first_lines(lines: Sequence[str], limit: int, rest: str = "and {:,} more") -> list[str]:
    """The first lines, and one that says how many more there are; all of them if they fit."""
    hidden = len(lines) - limit
    return [*lines[:limit], rest.format(hidden)] if hidden > 0 else list(lines)


def format_text(value: str | None) -> str:
    """A text from a file, escaped; – where there is none."""
    return NONE if value is None else escape_control(value)


def format_value(value: Any) -> str:
    """A config value as YAML spells it; `none` for null."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {format_value(item)}' for key, item in value.items())}}}"
    return escape_control(str(value))


def keep_together(text: str) -> str:
    """The text with no-break spaces between a number, its ± and its %."""
    return re.sub(r"(?<=[0-9]) (?=[%±])|(?<=±) (?=[0-9])", "\N{NO-BREAK SPACE}", text)


# ---- escaping and order


def escape_control(text: str) -> str:
    """Show control characters, newlines and invisible direction marks as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


# Characters of ours → what they become where a stream has ASCII only.
PLAINER = str.maketrans({
    "±": "+/-", "−": "-", "–": "-", "─": "-", "━": "-", "×": "x", "·": "*", "…": "...", "→": "->",
    "≤": "<=", "≥": ">=", "²": "2", "³": "3", "α": "alpha", "β": "beta", "γ": "gamma",
    "σ": "sigma", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
})  # fmt: skip
PLAIN = "vshift-plain"  # a handler of encoding errors: PLAINER, and what is not in it as an escape


def _make_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAINER)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(PLAIN, _make_plain)


def escape_lines(text: str) -> str:
    """Escape control characters line by line, so that any text may go to a terminal."""
    return "\n".join(map(escape_control, text.split("\n")))


def wrap_words(text: str, width: int | None) -> str:
    """The lines broken between words to fit a width; None is any width.

    A longer word, as a path is, stays whole: a terminal breaks it so that it can be copied.
    """
    if not width:
        return text
    wrap = textwrap.TextWrapper(
        width, expand_tabs=False, break_long_words=False, break_on_hyphens=False
    ).wrap
    return "\n".join("\n".join(wrap(line)) for line in text.split("\n"))


def one_line(text: str, limit: int = 1000) -> str:
    """`escape_control` of a text of any length, cut off at a number of characters."""
    return escape_control(text if len(text) <= limit else text[: limit - 1] + "…")


def shorten_middle(text: str, width: int) -> str:
    """The text without its middle: names begin with the study and end with what is special."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def show_value(value: Any, limit: int = 60) -> str:
    """A value in a message about a config: short, on one line, spelled as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping | list):
        return "a list" if isinstance(value, list) else "a mapping"
    text = value if isinstance(value, str) else " ".join(str(value).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(text) if isinstance(value, str) else text


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which `depth-9` comes before `depth-20`."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"([0-9]{1,18})", text)
        if part
    )


# ---- JSON


def to_jsonable(value: Any) -> Any:
    """A value as JSON knows it: numpy and torch unpacked, NaN and ±inf as null.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return to_jsonable(value.tolist())
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas; not worth importing it here
        return None
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a JSON file: {value!r}")


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Strict JSON (no NaN) of any value that `to_jsonable` takes."""
    return json.dumps(to_jsonable(value), indent=indent, allow_nan=False, ensure_ascii=ascii_only)


# ---- suggestions

# What other programs and people call it.
OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "p": "rate",
    "dropout": "noise",
    "batchnorm": "bn",
    "groupnorm": "gn",
    "linear": "fc",
    "swish": "silu",
    "gpu": "cuda",
}


def nearest(word: object, allowed: Iterable[str]) -> str:
    """The allowed word that is nearest to a wrong one, or an empty string if none is near."""
    words = {name.lower(): name for name in allowed}
    text = str(word).lower()
    near = [OTHER_NAMES.get(text, text)] if OTHER_NAMES.get(text, text) in words else []
    near = near or [name for name in words if sorted(name) == sorted(text)][:1]  # letters swapped
    near = near or difflib.get_close_matches(text, words, n=1, cutoff=0.6)
    return words[near[0]] if near else ""


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """The nearest allowed word as ``did you mean `noise`?``, or an empty string if none is near."""
    near = nearest(word, allowed)
    return f"did you mean `{near}`?" if near else ""


def suggest(word: object, allowed: Iterable[str]) -> str:
    """`did_you_mean` with a space after it, to stand in the middle of a message; or nothing."""
    hint = did_you_mean(word, allowed)
    return f"{hint} " if hint else ""
