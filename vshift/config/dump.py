"""A `Config` as YAML, and the JSON Schema of its file."""

from __future__ import annotations

from typing import Any

import yaml

from vshift.config.reader import scalar
from vshift.config.schema import Config


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else; lists stay on their line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if isinstance(_plain(value), str) else "'"
    if not value.isprintable():  # PyYAML loses some line breaks in every other style
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _plain(value: str) -> Any:
    """How `value` would be read without quotes; None if not at all."""
    try:
        return scalar(value)
    except ValueError:
        return None


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def dump(config: Config) -> str:
    """YAML of the whole config, defaults included; `load` makes an equal config of it."""
    text: str = yaml.dump(
        _name_first(config.model_dump()),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=2**31,
        default_flow_style=False,
    )
    return text


def _name_first(value: Any) -> Any:
    """Sections with what they are in front, as people write them."""
    if not isinstance(value, dict):
        return [_name_first(item) for item in value] if isinstance(value, list) else value
    keys = sorted(value, key=lambda key: key not in ("name", "kind"))
    return {key: _name_first(value[key]) for key in keys}


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors.

    Nothing is required and a union is `anyOf`: what a file leaves out may come from its base.
    """
    schema = _relaxed(Config.model_json_schema())
    path = {"type": "string", "description": "A file, from this file's folder."}
    base = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Config files that this one builds on: deep merge, later files win, this "
        "file wins over all; a section of another name or kind replaces the base's.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "vshift config",
        "properties": {"base": base, **schema["properties"]},
    }


def _relaxed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_relaxed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    relaxed = {
        key: value if key in ("default", "const", "enum") else _relaxed(value)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }
    if isinstance(relaxed.get("oneOf"), list):
        relaxed["anyOf"] = relaxed.pop("oneOf")
        relaxed.pop("discriminator", None)
    return relaxed
