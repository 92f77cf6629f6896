"""pydantic's errors as lines for the person at the terminal: where, which key, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vshift.config.renames import RENAMED
from vshift.config.schema import Config
from vshift.config.shape import (
    Spot,
    about,
    branches,
    core,
    discriminator,
    homes,
    is_section,
    spot,
    words,
)
from vshift.config.tree import Node, Path, Place, child, clean, dotted, show
from vshift.text import did_you_mean

MAX_LINES = 50
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
_THINGS = {"data": "a data set", "network": "a network", "schedule": "a schedule"}


def explain(error: ValidationError, tree: Node) -> list[str]:
    """One line for each problem, with the place in the file, base or `--set` that it comes from."""
    found = [(*_where(item, tree), item) for item in error.errors(include_url=False)]
    found.sort(key=lambda problem: problem[0].order)
    lines = [_line(*problem) for problem in found[:MAX_LINES]]
    return shorten(lines, more=len(found) - len(lines))


def shorten(lines: Iterable[str], more: int = 0) -> list[str]:
    """Each line once, and no more lines than a person reads; `more` are left out already."""
    unique = list(dict.fromkeys(lines))
    more += len(unique[MAX_LINES:])
    return unique[:MAX_LINES] + ([f"… and {more:,} more"] if more else [])


def _where(item: ErrorDetails, tree: Node) -> tuple[Place, Path]:
    here, kind = spot(Config, item["loc"]), item["type"]
    path = here.path
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, _tag(here))
    elif kind == "value_error":  # a validator may speak of a key that nobody wrote
        path = path[: max(1, _depth(tree, path))]
    return _place(tree, path, at_key=kind == "extra_forbidden"), path


def _line(place: Place, path: Path, item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden" and (renamed := _renamed(item)):
        return clean(f"{place}: {renamed}")
    what = _explainer(item["type"])(spot(Config, item["loc"]), item)
    return clean(f"{place}: {clean(dotted(path), 200)}: {what}" if path else f"{place}: {what}")


def _tag(here: Spot) -> str:
    """The key that chooses among a union's sections: `name` or `kind`."""
    return discriminator(next(iter(branches(here.kind).values())))


def _depth(tree: Node, path: Path) -> int:
    """How many parts of a path exist."""
    node: Node | None = tree
    for depth, key in enumerate(path):
        node = child(node, key) if node else None
        if node is None:
            return depth
    return len(path)


def _place(tree: Node, path: Path, *, at_key: bool) -> Place:
    """The place of a value or key; for a missing one, of the section that should hold it."""
    depth = _depth(tree, path)
    node = tree
    for key in path[:depth]:
        node = child(node, key) or node
    if depth == 0:
        return Place(tree.place.source)
    return node.key or node.place if at_key or depth < len(path) else node.place


def _renamed(item: ErrorDetails) -> str:
    """What a key is called today, if it had another name once."""
    section, key = spot(Config, item["loc"][:-1]), str(item["loc"][-1])
    path = dotted(section.path)
    new = RENAMED.get(path, {}).get(key)
    if new is None or new not in core(section.kind).model_fields:
        return ""
    how = "; null: the simple average over all batches" if key == "cumulative" else ""
    return f"`{path}.{key}` is now `{path}.{new}`{how}"


def _unknown(here: Spot, item: ErrorDetails) -> str:
    key = str(here.path[-1])
    section = spot(Config, item["loc"][:-1])
    allowed = sorted([*core(section.kind).model_fields, *(["base"] if len(here.path) == 1 else [])])
    hint = did_you_mean(key, allowed)
    siblings = [tag for tag, kind in _siblings(item["loc"]).items() if key in kind.model_fields]
    elsewhere = sorted(homes(Config, key))
    if _glued([key]):
        hint = _glued([key])
    elif key == "base":
        hint = "`base` stands at the top of a file;"
    elif siblings:
        hint = f"it is a key of {', '.join(siblings)};"
    elif len(here.path) > 1 and key in Config.model_fields:
        hint = f"`{key}` is a section of its own, beside {here.path[0]};"
    elif not hint and elsewhere:
        hint = f"did you mean {' or '.join(f'`{home}`' for home in elsewhere[:3])}?"
    of = f" of {section.branch}" if section.branch not in ("", "one", "list") else ""
    return (
        f"unknown key{of}; {hint.strip() + ' ' if hint else ''}allowed here: {', '.join(allowed)}"
    )


def _glued(keys: Iterable[Any]) -> str:
    """A hint if YAML took `name:shapes`, without a space, for a key."""
    found = next((key for key in keys if isinstance(key, str) and ":" in key.strip(":")), None)
    if found is None:
        return ""
    key, value = found.split(":", 1)
    return f"a space goes behind the colon, {clean(key, 40)}: {clean(value, 40)}; "


def _siblings(location: Path) -> dict[str, Any]:
    """The other sections that could stand where the one around an error does."""
    union = spot(Config, location[:-2])
    return {tag: kind for tag, kind in branches(union.kind).items() if is_section(kind)}


def _missing(here: Spot, item: ErrorDetails) -> str:
    allowed = words(here.kind) or list(branches(here.kind))
    if branches(here.kind):
        tag = _tag(here)
        return f"missing; a section whose {tag} is one of {', '.join(allowed)}"
    text = f"allowed: {', '.join(allowed)}" if allowed else about(here.field)
    return f"missing; {text}" if text else "missing"


def _no_such_branch(here: Spot, item: ErrorDetails) -> str:
    allowed = list(branches(here.kind))
    if item["type"] == "union_tag_not_found":
        return f"missing; {_glued(item['input'])}allowed: {', '.join(allowed)}"
    tag = item["input"][_tag(here)]
    thing = _THINGS.get(str(here.path[-1]))
    return _not_among(tag, f"not {thing}" if thing else "not allowed", allowed)


def _not_among(value: Any, isnt: str, allowed: list[str]) -> str:
    hint = did_you_mean(value, allowed)
    return f"{show(value)} is {isnt}; {hint + ' ' if hint else ''}allowed: {', '.join(allowed)}"


def _not_a_word(here: Spot, item: ErrorDetails) -> str:
    allowed = words(here.kind) + (["a list"] if here.branch == "one" else [])
    return _not_among(item["input"], "not allowed", allowed)


def _not_a_section(here: Spot, item: ErrorDetails) -> str:
    value, tags = item["input"], branches(here.kind)
    text = f"{show(value)} is not a section of keys"
    if not tags:
        return text
    example = value if isinstance(value, str) and value in tags else next(iter(tags))
    return f"{text}; write for instance {{{_tag(here)}: {example}}}"


def _wrong_type(here: Spot, item: ErrorDetails) -> str:
    value, kind = item["input"], item["type"].split("_")[0]
    return f"{show(value)} is not {_TYPES[kind]}{_cure(value, kind, here)}"


def _cure(value: Any, kind: str, here: Spot) -> str:
    """What to write instead, where that is plain."""
    optional = here.field is not None and not here.field.is_required()
    if value is None:
        return "; leave the key out for its default" if optional else ""
    if kind == "string" and not isinstance(value, (dict, list)):
        return f"; in quotes it is: '{show(value)}'"
    if kind == "list" and here.path[-1] == "seeds":
        return "; write the seeds themselves, such as [0, 1]"
    if kind == "list" and not isinstance(value, dict):
        return f"; write [{show(value) if not isinstance(value, str) else clean(value, 60)}]"
    if kind == "int" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if (
        kind in ("int", "float")
        and isinstance(value, str)
        and re.fullmatch(r"[-+]?[\d.]+(e-?\d+)?", value)
    ):
        return "; remove the quotes"
    if kind == "bool" and str(value).lower() in ("yes", "on", "y", "1", "no", "off", "n", "0"):
        return f"; write {'true' if str(value).lower() in ('yes', 'on', 'y', '1') else 'false'}"
    return ""


_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _out_of_range(here: Spot, item: ErrorDetails) -> str:
    key, relation = _BOUNDS[item["type"]]
    bound = item["ctx"][key]
    bound = int(bound) if float(bound).is_integer() else bound
    note = f" ({about(here.field)})" if about(here.field) else ""
    return f"{show(item['input'])} is not allowed; must be {relation} {bound}{note}"


def _wrong_length(here: Spot, item: ErrorDetails) -> str:
    context = item["ctx"]
    count = context.get("actual_length")
    what = "the text is empty" if isinstance(item["input"], str) else f"{count} entries"
    if "min_length" in context:
        return f"{what}; at least {context['min_length']}" if count else "empty; give at least one"
    return f"more than {context['max_length']} entries"


def _by_validator(here: Spot, item: ErrorDetails) -> str:
    return str(item["ctx"]["error"])


def _other(here: Spot, item: ErrorDetails) -> str:
    text = item["msg"].replace("Input should be", "must be")
    return f"{show(item['input'])} is not allowed; {text[:1].lower()}{text[1:]}"


def _explainer(kind: str) -> Callable[[Spot, ErrorDetails], str]:
    if kind in _BOUNDS:
        return _out_of_range
    if kind.removesuffix("_type") in _TYPES or kind == "int_from_float":
        return _wrong_type
    return {
        "extra_forbidden": _unknown,
        "missing": _missing,
        "union_tag_invalid": _no_such_branch,
        "union_tag_not_found": _no_such_branch,
        "literal_error": _not_a_word,
        "model_type": _not_a_section,
        "model_attributes_type": _not_a_section,
        "too_short": _wrong_length,
        "too_long": _wrong_length,
        "string_too_short": _wrong_length,
        "value_error": _by_validator,
    }.get(kind, _other)
