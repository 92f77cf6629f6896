"""pydantic's errors as lines for the person at the terminal: where, which key, what is allowed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vshift.config.renames import new_name
from vshift.config.schema import Config
from vshift.config.section import Section
from vshift.config.yaml12 import Node, SourceLocation
from vshift.text import one_line, show_value, suggest

MAX_LINES = 50
Path = tuple[str | int, ...]


def explain(error: ValidationError, tree: Node) -> list[str]:
    """One line per problem, with the location in the file, base or `--set` that it comes from."""
    found = [(*_find(item, tree), item) for item in error.errors(include_url=False)]
    found.sort(key=lambda problem: problem[0])
    return shorten([_line(*problem) for problem in found[:MAX_LINES]], len(found[MAX_LINES:]))


def shorten(lines: Iterable[str], more: int = 0) -> list[str]:
    """Each line once, and no more lines than a person reads; `more` are left out already."""
    unique = list(dict.fromkeys(lines))
    more += len(unique[MAX_LINES:])
    return unique[:MAX_LINES] + ([f"… and {more:,} more"] if more else [])


def _find(item: ErrorDetails, tree: Node) -> tuple[SourceLocation, Path]:
    """Where an error is in the files, and in the config."""
    here, kind = _resolve(item["loc"]), item["type"]
    path = here.path
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, _tag(here.type))
    elif kind == "value_error":  # a validator may speak of a key that nobody wrote
        path = path[: max(1, len(_nodes(tree, path)))]
    nodes = _nodes(tree, path)
    if not nodes:
        return SourceLocation(tree.location.source), path
    of_key = kind == "extra_forbidden" or len(nodes) < len(path)
    return nodes[-1].start if of_key else nodes[-1].location, path


def _nodes(tree: Node, path: Path) -> list[Node]:
    """The nodes along a path, as far as it exists."""
    nodes: list[Node] = []
    for key in path:
        child = (nodes[-1] if nodes else tree).child(key)
        if child is None:
            break
        nodes.append(child)
    return nodes


def _line(location: SourceLocation, path: Path, item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden" and (renamed := _renamed(item)):
        return one_line(f"{location}: {renamed}")
    what = _what(_resolve(item["loc"]), item)
    key = f"{one_line(_dotted(path), 200)}: " if path else ""
    return one_line(f"{location}: {key}{what}")


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


# ---- what the schema says about a place in a config

# pydantic's error locations contain the tags of unions (`network.preresnet.depth`), and a key may
# be called like a tag. Only the types tell which part is which.


@dataclass(frozen=True)
class SchemaLocation:
    """A place in a config: its path without tags, the type there, the field that declares it."""

    path: Path
    type: Any
    field: FieldInfo | None = None
    tag: str = ""  # of the last union: `preresnet`, `one` or `list`

    @property
    def description(self) -> str:
        """The field's first sentence, to stand in brackets or after a semicolon."""
        text = (self.field.description or "") if self.field else ""
        first = text.replace(";", ". ").split(". ")[0].rstrip(".").strip()
        starts_a_word = len(first) > 1 and (first[1].islower() or first[1] == " ")
        return first[:1].lower() + first[1:] if starts_a_word else first


def _resolve(location: Path) -> SchemaLocation:
    here = SchemaLocation((), Config)
    for part in location:
        kind, branches = _strip(here.type), _branches(here.type)
        path = (*here.path, part)
        if part in branches:
            here = SchemaLocation(here.path, branches[str(part)], here.field, str(part))
        elif _is_section(kind) and part in kind.model_fields:
            field = kind.model_fields[str(part)]
            here = SchemaLocation(path, field.annotation, field)
        else:
            inner = get_args(kind)[-1] if get_origin(kind) in (list, dict) else Any
            here = SchemaLocation(path, inner)
    return here


def _strip(kind: Any) -> Any:
    """A type without `Annotated` and `| None`."""
    while True:
        args = get_args(kind)
        if get_origin(kind) is Annotated:
            kind = args[0]
        elif get_origin(kind) in (Union, types.UnionType) and types.NoneType in args:
            kind = Union[tuple(arg for arg in args if arg is not types.NoneType)]  # noqa: UP007
        else:
            return kind


def _branches(kind: Any) -> dict[str, Any]:
    """tag → type for a union; empty for anything else."""
    kind = _strip(kind)
    result: dict[str, Any] = {}
    for arg in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ():
        tags = [mark.tag for mark in getattr(arg, "__metadata__", ()) if isinstance(mark, Tag)]
        if not tags and _is_section(arg):
            tags = _literals(arg.model_fields[_tag_key(arg)].annotation)
        result.update(dict.fromkeys(tags, arg))
    return result


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _literals(kind: Any) -> list[str]:
    """The values that a `Literal` allows, as YAML spells them."""
    kind = _strip(kind)
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def _tag_key(section: Any) -> str:
    """The key that tells the sections of a union apart: `name` or `kind`."""
    keys = [k for k in ("name", "kind") if k in section.model_fields]
    return next((k for k in keys if _literals(section.model_fields[k].annotation)), "")


def _tag(union: Any) -> str:
    return _tag_key(next(iter(_branches(union).values())))


def _find_key(kind: Any, key: str, path: str = "") -> set[str]:
    """The dotted places of every key of this name in the schema: `rate` → `network.noise.rate`."""
    kind = _strip(kind)
    inner = [*_branches(kind).values(), *(get_args(kind)[:1] if get_origin(kind) is list else ())]
    found: set[str] = set().union(*(_find_key(part, key, path) for part in inner))
    for name, field in kind.model_fields.items() if _is_section(kind) else ():
        here = f"{path}.{name}" if path else name
        found |= ({here} if name == key else set()) | _find_key(field.annotation, key, here)
    return found


# ---- what is wrong

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
_THINGS = {"data": "a data set", "network": "a network", "schedule": "a schedule"}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_YES, _NO = ("yes", "on", "y", "1"), ("no", "off", "n", "0")


def _what(here: SchemaLocation, item: ErrorDetails) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    branches = _branches(here.type)
    if kind in _BOUNDS:
        key, relation = _BOUNDS[kind]
        bound = int(context[key]) if float(context[key]).is_integer() else context[key]
        note = f" ({here.description})" if here.description else ""
        return f"{show_value(value)} is not allowed; must be {relation} {bound}{note}"
    if kind.removesuffix("_type") in _TYPES or kind == "int_from_float":
        return _wrong_type(here, value, kind.split("_")[0])
    match kind:
        case "extra_forbidden":
            return _unknown_key(here, item)
        case "missing":
            return _missing(here)
        case "union_tag_not_found":
            return f"missing; {_missing_space(value)}allowed: {', '.join(branches)}"
        case "union_tag_invalid":
            thing = _THINGS.get(str(here.path[-1]))
            return _not_among(
                value[_tag(here.type)], f"not {thing}" if thing else "not allowed", list(branches)
            )
        case "literal_error":
            allowed = _literals(here.type) + (["a list"] if here.tag == "one" else [])
            return _not_among(value, "not allowed", allowed)
        case "model_type" | "model_attributes_type":
            text = f"{show_value(value)} is not a section of keys"
            if not branches:
                return text
            named = isinstance(value, str) and value in branches
            example = value if named else next(iter(branches))
            return f"{text}; write for instance {{{_tag(here.type)}: {example}}}"
        case "too_short" | "string_too_short":
            return "empty; give at least one"
        case "too_long":
            return f"more than {context['max_length']} entries"
        case "value_error":
            return str(context["error"])
    text = item["msg"].replace("Input should be", "must be")
    return f"{show_value(value)} is not allowed; {text[:1].lower()}{text[1:]}"


def _not_among(value: Any, isnt: str, allowed: list[str]) -> str:
    hint = suggest(value, allowed)
    return f"{show_value(value)} is {isnt}; {hint}allowed: {', '.join(allowed)}"


def _missing(here: SchemaLocation) -> str:
    branches = _branches(here.type)
    if branches:
        return f"missing; a section whose {_tag(here.type)} is one of {', '.join(branches)}"
    allowed = _literals(here.type)
    text = f"allowed: {', '.join(allowed)}" if allowed else here.description
    return f"missing; {text}" if text else "missing"


def _renamed(item: ErrorDetails) -> str:
    """What a key is called today, if it had another name once."""
    section = _resolve(item["loc"][:-1])
    key = f"{_dotted(section.path)}.{item['loc'][-1]}"
    new = new_name(key)
    if new.partition(".")[2] not in _strip(section.type).model_fields:
        return ""
    how = "; null: the simple average over all batches" if key == "norm.cumulative" else ""
    return f"`{key}` is now `{new}`{how}"


def _unknown_key(here: SchemaLocation, item: ErrorDetails) -> str:
    key, is_top = str(here.path[-1]), len(here.path) == 1
    section = _resolve(item["loc"][:-1])
    allowed = sorted([*_strip(section.type).model_fields, *(["base"] if is_top else [])])
    of = f" of {section.tag}" if section.tag not in ("", "one", "list") else ""
    hint = _missing_space([key]) or _key_hint(key, here.path, item["loc"], allowed)
    return f"unknown key{of}; {hint}allowed here: {', '.join(allowed)}"


def _key_hint(key: str, path: Path, location: Path, allowed: list[str]) -> str:
    """What was probably meant by a key that the section does not have."""
    siblings = _branches(_resolve(location[:-2]).type).items()
    having = [tag for tag, kind in siblings if _is_section(kind) and key in kind.model_fields]
    if key == "base":
        return "`base` is only allowed at the top of a file; "
    if having:
        return f"it is a key of {', '.join(having)}; "
    if len(path) > 1 and key in Config.model_fields:
        return f"`{key}` is a section of its own, beside {path[0]}; "
    homes = [f"`{home}`" for home in sorted(_find_key(Config, key))[:3]]
    near = suggest(key, allowed)
    return near or (f"did you mean {' or '.join(homes)}? " if homes else "")


def _missing_space(keys: Iterable[Any]) -> str:
    """A hint if YAML took `name:shapes`, without a space, for a key."""
    found = next((key for key in keys if isinstance(key, str) and ":" in key.strip(":")), None)
    if found is None:
        return ""
    key, value = found.split(":", 1)
    return f"a space goes after the colon, {one_line(key, 40)}: {one_line(value, 40)}; "


def _wrong_type(here: SchemaLocation, value: Any, kind: str) -> str:
    return f"{show_value(value)} is not {_TYPES[kind]}{_remedy(here, value, kind)}"


def _remedy(here: SchemaLocation, value: Any, kind: str) -> str:
    """What to write instead, where that is plain."""
    word = str(value).lower()
    if value is None:
        optional = here.field is not None and not here.field.is_required()
        return "; leave the key out for its default" if optional else ""
    if kind == "string" and not isinstance(value, dict | list):
        return f"; in quotes it is: '{show_value(value)}'"
    if kind == "list" and here.path[-1] == "seeds":
        return "; write the seeds themselves, such as [0, 1]"
    if kind == "list" and not isinstance(value, dict):
        return f"; write [{one_line(value, 60) if isinstance(value, str) else show_value(value)}]"
    if kind == "int" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e-?\d+)?", value)
    if kind in ("int", "float") and is_number:
        return "; remove the quotes"
    if kind == "bool" and word in (*_YES, *_NO):
        return f"; write {'true' if word in _YES else 'false'}"
    return ""
