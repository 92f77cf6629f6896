"""Every config key as Markdown tables for docs/config.md, from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vshift.config.identity import TAG_KEYS
from vshift.config.schema import FILE_KEYS, Config, json_schema

Schema = dict[str, Any]
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_PLAIN = {"string": "text", "object": "mapping", "boolean": "`true`, `false`", "null": "`null`"}
_OWN = "[one’s own](#parts-of-ones-own)"
_LARGE = 10**6  # limits from here on only keep numbers within reason
START, END = "<!-- the keys -->\n", "<!-- end -->"


def fill_document(text: str) -> str:
    """docs/config.md with its tables as the schema declares them."""
    before, rest = text.split(START)
    return f"{before}{START}{reference()}\n{END}{rest.split(END, 1)[1]}"


def reference() -> str:
    """A table of the top's keys, then for each section its kinds and its keys."""
    schema = Config.model_json_schema()
    as_written = json_schema()["properties"]
    about_file = {key: as_written[key] for key in FILE_KEYS}
    schema["properties"] = {**about_file, **schema["properties"], "norm": as_written["norm"]}
    blocks = [_keys_table("", [(schema, "")])]
    sections = [("", [(schema, "")])]
    while sections:
        path, branches = sections.pop(0)
        found = list(_sections_in(path, branches, schema["$defs"]))
        sections = [*found, *sections]  # data.augment right after data
        if path:
            level = "##" if "." not in path else "###"
            blocks += [f"{level} `{path}`", *_kinds_table(branches), _keys_table(path, branches)]
    return "\n\n".join(blocks)


_Branches = list[tuple[Schema, str]]  # what a section can be, each with the kinds that it is


def _sections_in(
    path: str, branches: _Branches, definitions: Schema
) -> Iterator[tuple[str, _Branches]]:
    """The sections below a section: their dotted keys and what they can be."""
    found: dict[str, dict[str, list[str]]] = {}
    for branch, kinds in branches:
        for key, schema in branch["properties"].items():
            for name in _references(schema):
                found.setdefault(key, {}).setdefault(name, []).append(kinds)
    for key, names in found.items():
        below = [
            (definitions[name], _kinds(definitions[name]) or ", ".join(above))
            for name, above in names.items()
        ]
        yield f"{path}.{key}".lstrip("."), below


def _references(schema: Any) -> list[str]:
    """The names of the sections that a key's value can be."""
    if isinstance(schema, list):
        return [name for item in schema for name in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
    return list(dict.fromkeys([*own, *_references(list(schema.values()))]))


def _tag(branch: Schema) -> str:
    """The key that tells a union's branches apart; empty where there is no union."""
    return next((key for key in TAG_KEYS if key in branch["properties"]), "")


def _kinds(branch: Schema) -> str:
    """What a branch's tag can be: `cifar10`, `cifar100`."""
    if not (tag := _tag(branch)):
        return ""
    schema = branch["properties"][tag]
    words = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return ", ".join(map(_code, words)) or _OWN


def _kinds_table(branches: _Branches) -> list[str]:
    tag = _tag(branches[0][0])
    if not tag:
        return []
    rows = []
    for branch, kinds in branches:
        about = branch.get("description", "").partition("\n\n")[0].replace("\n", " ")
        rows.append([kinds, f"{branch['properties'][tag]['description']} {about}".strip()])
    return [_table([f"`{tag}`", "what"], rows)]


def _keys_table(path: str, branches: _Branches) -> str:
    """A row for each key; one that several kinds share has one row, and `of` names them."""
    of: dict[tuple[str, str, str, str], list[str]] = {}
    for branch, kinds in branches:
        for key, schema in branch["properties"].items():
            if path and len(branches) > 1 and key == _tag(branch):
                continue
            required = key in branch.get("required", []) and key != "name"
            row = (
                f"`{key}`",
                _allowed(schema, f"{path}.{key}".lstrip(".")),
                "required" if required else _default(schema),
                schema["description"],
            )
            of.setdefault(row, []).append(kinds)
    is_shared = all(len(kinds) == len(branches) for kinds in of.values())
    rows = [["key", "of", "allowed", "default", "meaning"]]
    for (key, *rest), names in of.items():
        rows.append([key, "all" if len(names) == len(branches) else ", ".join(names), *rest])
    heads, *rows = [row[:1] + row[2:] for row in rows] if is_shared else rows
    return _table(heads, rows)


def _allowed(schema: Schema, path: str) -> str:
    """`integer ≥ 1`, `list of text`, or the words that a key can be."""
    if _references(schema):
        text = f"[section](#{path.replace('.', '')})"
        words = [word for part in schema.get("anyOf", []) for word in part.get("enum", [])]
        return " or ".join([text, *(["its kind alone"] if words else [])])
    parts = schema.get("anyOf", schema.get("oneOf"))
    if parts is not None:
        first, *rest = dict.fromkeys(_allowed(part, path) for part in parts)
        return " or ".join([first, *(text.replace(f"list of {first}", "a list") for text in rest)])
    if "const" in schema or "enum" in schema:
        return ", ".join(map(_code, schema.get("enum", [schema.get("const")])))
    if schema["type"] == "array":
        return f"list of {_allowed(schema['items'], path)}" if schema["items"] else "list"
    if schema["type"] == "object":
        inner = schema["additionalProperties"]
        of = f" of {_allowed(inner, path)}s" if isinstance(inner, dict) else ""
        return _PLAIN["object"] + of
    bounds = [
        f"{sign} {schema[key]:,}"
        for key, sign in _BOUNDS.items()
        if key in schema and schema[key] < _LARGE
    ]
    return f"{_PLAIN.get(schema['type'], schema['type'])} {', '.join(bounds)}".strip()


def _default(schema: Schema) -> str:
    """The default, of a section its kind; – where the meaning says it."""
    default = schema.get("default")
    if isinstance(default, dict) and default:
        kind = next((default[key] for key in TAG_KEYS if key in default), None)
        return _code(kind) if kind else "–"
    return _code(default) if "default" in schema else "–"


def _code(value: Any) -> str:
    """A value as it is written in YAML."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in r] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":  # python -m vshift.config.reference docs/config.md
    import sys
    from pathlib import Path

    document = Path(sys.argv[1])
    document.write_text(fill_document(document.read_text("utf-8")), "utf-8")
