"""pydantic's errors as lines for the person at the terminal: where, which key, what is allowed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vshift.config.identity import new_name
from vshift.config.schema import FILE_KEYS, Config
from vshift.config.section import Section
from vshift.config.yaml12 import Node, SourceLocation
from vshift.text import OTHER_NAMES, nearest, one_line, show_value, suggest

MAX_LINES = 50
Path = tuple[str | int, ...]


def explain(error: ValidationError, tree: Node) -> list[str]:
    """One line per problem, with the location in the file, base or `--set` that it comes from."""
    items = error.errors(include_url=False)
    unknown = [item for item in items if item["type"] == "extra_forbidden"]
    meant = {key for item in unknown[:MAX_LINES] for key in _meant(item)}
    found = [(*_find(item, tree), item) for item in items]
    # A key that is missing because it is misspelt is one problem.
    found = [p for p in found if p[2]["type"] != "missing" or _dotted(p[1]) not in meant]
    found.sort(key=lambda problem: problem[0])
    lines = []
    for location, path, item in found[:MAX_LINES]:
        key = f"{one_line(_dotted(path), 200)}: " if path else ""
        what = _renamed(item) or key + _what(_resolve(item["loc"]), item)
        lines.append(one_line(f"{location}: {what}"))
    return shorten(lines, len(found[MAX_LINES:]))


def shorten(lines: Iterable[str], more: int = 0) -> list[str]:
    """Each line once, and no more lines than a person reads; `more` are left out already."""
    unique = list(dict.fromkeys(lines))
    more += len(unique[MAX_LINES:])
    return unique[:MAX_LINES] + ([f"… and {more:,} more"] if more else [])


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))


def _find(item: ErrorDetails, tree: Node) -> tuple[SourceLocation, Path]:
    """Where an error is in the files, and in the config."""
    here, kind = _resolve(item["loc"]), item["type"]
    path = here.path
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, here.tag_key)
    nodes: list[Node] = []  # along the path, as far as it exists
    for key in path:
        child = (nodes[-1] if nodes else tree).child(key)
        if child is None:
            break
        nodes.append(child)
    if kind == "value_error":  # a validator may speak of a key that nobody wrote
        path = path[: max(1, len(nodes))]
    if not nodes:
        return SourceLocation(tree.location.source), path
    of_key = kind == "extra_forbidden" or len(nodes) < len(path)
    return nodes[-1].start if of_key else nodes[-1].location, path


_NO_NAMES = ("one", "list", "named", "own")  # tags that nobody writes
# ---- what the schema says about a place in a config

# pydantic's error locations contain the tags of unions (`network.preresnet.depth`), and a key may
# be called like a tag. Only the types tell which part is which.


@dataclass(frozen=True)
class SchemaLocation:
    """A place in a config: its path without tags, the type there, the field that declares it."""

    path: Path
    type: Any
    field: FieldInfo | None = None
    tag: str = ""  # of the last union: `preresnet`, `one`, `list`, `named` or `own`
    forms: tuple[str, ...] = ()  # of references that may stand in the place of a name

    @cached_property
    def branches(self) -> dict[str, Any]:
        """tag → type where the type is a union."""
        return _branches(self.type)

    @cached_property
    def sections(self) -> dict[str, Any]:
        """`branches`, where a part of one's own is allowed too those of the named ones."""
        return _branches(self.branches["named"]) if "named" in self.branches else self.branches

    @property
    def allowed(self) -> list[str]:
        """The names that the union's sections have, and the forms of references."""
        own = self.branches.get("own")
        return [*self.sections, *(self.forms if own is None else _strip(own).forms)]

    @property
    def tag_key(self) -> str:
        """The key that tells the sections of the union apart: `name` or `kind`."""
        return _tag_key(next(iter(self.sections.values())))

    @property
    def keys(self) -> list[str]:
        """The keys of the section."""
        return list(_strip(self.type).model_fields)

    @property
    def is_optional(self) -> bool:
        """Whether null is allowed."""
        return self.field is not None and types.NoneType in get_args(self.field.annotation)

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
        kind, path = _strip(here.type), (*here.path, part)
        if part in here.branches:
            forms = tuple(here.allowed[len(here.sections) :]) if part == "named" else ()
            here = SchemaLocation(here.path, here.branches[str(part)], here.field, str(part), forms)
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


def find_keys(key: str) -> list[str]:
    """The dotted places of every key of this name in a config: `rate` → `network.noise.rate`.

    A name of other programs counts as ours: `lr` → `optimizer.learning_rate`.
    """
    return sorted(_find_key(Config, key) or _find_key(Config, OTHER_NAMES.get(key, "")))


def _find_key(kind: Any, key: str, path: str = "") -> set[str]:
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
_THINGS = {"data": "a data set", "network": "a network", "schedule": "a schedule", "loss": "a loss"}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_YES, _NO = ("yes", "on", "y", "1"), ("no", "off", "n", "0")


def _what(here: SchemaLocation, item: ErrorDetails) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    shown, branches = show_value(value), here.branches
    if kind in _BOUNDS:
        key, relation = _BOUNDS[kind]
        bound = int(context[key]) if float(context[key]).is_integer() else context[key]
        note = f" ({here.description})" if here.description else ""
        return f"{shown} is not allowed; must be {relation} {bound}{note}"
    if kind.removesuffix("_type") in _TYPES or kind == "int_from_float":
        wanted = kind.split("_")[0]
        return f"{shown} is not {_TYPES[wanted]}{_remedy(here, value, wanted)}"
    match kind:
        case "extra_forbidden":
            return _unknown_key(here, item["loc"])
        case "missing":
            allowed = ", ".join(_literals(here.type))
            text = f"allowed: {allowed}" if allowed else here.description
            if branches:
                text = f"a section whose {here.tag_key} is one of {', '.join(here.allowed)}"
            return f"missing; {text}" if text else "missing"
        case "union_tag_not_found":
            wrong = [one_line(str(key), 40) for key in value if nearest(key, [here.tag_key])]
            hint = _missing_space(value) or (f"`{wrong[0]}` is no key here; " if wrong else "")
            return f"missing; {hint}allowed: {', '.join(here.allowed)}"
        case "union_tag_invalid":
            thing = _THINGS.get(str(here.path[-1]))
            isnt = f"not {thing}" if thing else "not allowed"
            return _not_among(value[here.tag_key], isnt, here.allowed)
        case "literal_error":
            words = _literals(here.type) + (["a list"] if here.tag == "one" else [])
            return _not_among(value, "not allowed", words)
        case "model_type" | "model_attributes_type":
            text = f"{shown} is not a section of keys"
            if here.is_optional and str(value).lower() in (*_NO, "none", "false"):
                return f"{text}; write null"
            if branches:
                is_reference = here.forms and ":" in str(value)
                named = isinstance(value, str) and (value in here.sections or is_reference)
                example = value if named else next(iter(here.sections))
                text += f"; write for instance {{{here.tag_key}: {example}}}"
            return text
        case "too_short" | "string_too_short":
            least = context["min_length"]
            return "empty; give at least one" if least == 1 else f"too short; give {least}"
        case "too_long":
            return f"more than {context['max_length']} entries"
        case "value_error":
            return str(context["error"])
    text = item["msg"].replace("Input should be", "must be")
    return f"{shown} is not allowed; {text[:1].lower()}{text[1:]}"


def _not_among(value: Any, isnt: str, allowed: list[str]) -> str:
    hint = suggest(value, allowed)
    return f"{show_value(value)} is {isnt}; {hint}allowed: {', '.join(allowed)}"


def _renamed(item: ErrorDetails) -> str:
    """Say the present name of a key that was renamed; empty for others."""
    if item["type"] != "extra_forbidden":
        return ""
    section = _resolve(item["loc"][:-1])
    key = _dotted((*section.path, item["loc"][-1]))
    new = new_name(key)
    if isinstance(item["input"], int) and f"{key}_limit" in ("data.train_limit", "data.test_limit"):
        return ""  # a number of images, which never was a folder
    if new.partition(".")[2] not in section.keys:
        return ""
    how = "; null: the simple average over all batches" if key == "norm.cumulative" else ""
    return f"`{key}` is now `{new}`{how}"


def _meant(item: ErrorDetails) -> list[str]:
    """The dotted keys of which an unknown one may be a misspelling or another name."""
    *above, key = item["loc"]
    section = _resolve(tuple(above))
    near = nearest(key, section.keys)
    others = [new_name(_dotted((*section.path, key))), *find_keys(str(key))]
    return [_dotted((*section.path, near))] if near else others


def _unknown_key(here: SchemaLocation, location: Path) -> str:
    """Suggest a key for one that the section does not have, and list the section's keys."""
    key, is_top = str(here.path[-1]), len(here.path) == 1
    section = _resolve(location[:-1])
    allowed = sorted([*section.keys, *(FILE_KEYS if is_top else [])])
    siblings = _resolve(location[:-2]).sections.items()
    having = [tag for tag, kind in siblings if _is_section(kind) and key in kind.model_fields]
    if key in FILE_KEYS:
        hint = f"`{key}` is only allowed at the top of a file; "
    elif f"{key}_limit" in section.keys:
        hint = f"a number of images is `{key}_limit`; "
    elif "args" in section.keys and (having or not suggest(key, allowed)):
        hint = f"what the object is called with goes into args: {{{one_line(key, 40)}: …}}; "
    elif having:
        hint = f"it is a key of {', '.join(having)}; "
    elif not is_top and key in Config.model_fields:
        hint = f"`{key}` is a section of its own, beside {here.path[0]}; "
    else:
        homes = [f"`{home}`" for home in find_keys(key)[:3]]
        elsewhere = f"did you mean {' or '.join(homes)}? " if homes else ""
        hint = _missing_space([key]) or suggest(key, allowed) or elsewhere
    of = f" of {section.tag}" if section.tag not in ("", *_NO_NAMES) else ""
    return f"unknown key{of}; {hint}allowed here: {', '.join(allowed)}"


def _missing_space(keys: Iterable[Any]) -> str:
    """A hint if YAML took `name:shapes`, without a space, for a key."""
    found = next((key for key in keys if isinstance(key, str) and ":" in key.strip(":")), None)
    if found is None:
        return ""
    key, value = found.split(":", 1)
    return f"a space goes after the colon, {one_line(key, 40)}: {one_line(value, 40)}; "


def _remedy(here: SchemaLocation, value: Any, kind: str) -> str:
    """A suggestion of what to write instead; empty without one."""
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
