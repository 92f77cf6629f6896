"""What the schema says about a place in a config, found by walking its types.

pydantic's error locations hold the names of union branches (`network.preresnet.depth`), and a
branch may be called like a key. Only the types tell which part is which.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag
from pydantic.fields import FieldInfo

from vshift.config.base import Section
from vshift.config.tree import Path


@dataclass(frozen=True)
class Spot:
    """A place in a config: its key, the type there, and the field that declares it."""

    path: Path
    kind: Any
    field: FieldInfo | None
    branch: str = ""  # the last union branch taken, `preresnet` or `list`


def core(kind: Any) -> Any:
    """A type without `Annotated` and `| None`."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif is_union(kind) and types.NoneType in get_args(kind):
            rest = tuple(arg for arg in get_args(kind) if arg is not types.NoneType)
            kind = Union[rest]  # noqa: UP007  (the members are known only now)
        else:
            return kind


def is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def discriminator(section: Any) -> str:
    """The key that tells the branches of a union apart, or an empty string."""
    for key in ("name", "kind"):
        if (
            key in section.model_fields
            and get_origin(section.model_fields[key].annotation) is Literal
        ):
            return key
    return ""


def branches(kind: Any) -> dict[str, Any]:
    """tag → type for a union; empty for anything else."""
    result: dict[str, Any] = {}
    for arg in get_args(core(kind)) if is_union(core(kind)) else ():
        marks = [mark.tag for mark in getattr(arg, "__metadata__", ()) if isinstance(mark, Tag)]
        if not marks and is_section(arg):
            marks = list(get_args(arg.model_fields[discriminator(arg)].annotation))
        result.update(dict.fromkeys(marks, arg))
    return result


def spot(root: Any, location: Path) -> Spot:
    """Where a pydantic error location is, without the union branches in it."""
    here = Spot((), root, None)
    for part in location:
        here = _step(here, part)
    return here


def _step(here: Spot, part: str | int) -> Spot:
    tags = branches(here.kind)
    if part in tags:
        return Spot(here.path, tags[str(part)], here.field, str(part))
    kind, path = core(here.kind), (*here.path, part)
    if is_section(kind) and part in kind.model_fields:
        field = kind.model_fields[str(part)]
        return Spot(path, field.annotation, field)
    if get_origin(kind) in (list, dict):
        return Spot(path, get_args(kind)[-1], None)
    return Spot(path, Any, None)


def words(kind: Any) -> list[str]:
    """The allowed words of a `Literal`, as YAML spells them."""
    kind = core(kind)
    return [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else []


def homes(root: Any, key: str, path: str = "") -> set[str]:
    """The dotted places of every key of this name in the schema: `rate` → `network.noise.rate`."""
    found: set[str] = set()
    kind = core(root)
    for branch in branches(kind).values():
        found |= homes(branch, key, path)
    if get_origin(kind) is list:
        found |= homes(get_args(kind)[0], key, path)
    if is_section(kind):
        for name, field in kind.model_fields.items():
            here = f"{path}.{name}" if path else name
            found |= ({here} if name == key else set()) | homes(field.annotation, key, here)
    return found


def about(field: FieldInfo | None) -> str:
    """The first sentence of a field's description, ready to stand in brackets or after `;`."""
    text = (field.description or "") if field else ""
    first = text.replace(";", ". ").split(". ")[0].rstrip(".").strip()
    starts_a_word = len(first) > 1 and (first[1].islower() or first[1] == " ")
    return first[:1].lower() + first[1:] if starts_a_word else first
