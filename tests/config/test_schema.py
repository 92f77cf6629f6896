"""The JSON Schema of a config file."""

import json
from typing import Any, get_args

from vshift.config import json_schema
from vshift.config.norm import NamedNorm, NormWord


def _fields(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    sections = [schema, *schema["$defs"].values()]
    return [item for section in sections for item in section.get("properties", {}).items()]


def test_every_named_norm_may_be_a_word_alone() -> None:
    kinds = [
        kind for s in get_args(NamedNorm) for kind in get_args(s.model_fields["kind"].annotation)
    ]
    assert get_args(NormWord) == tuple(kinds)
    assert {"enum": kinds, "type": "string"} in json_schema()["properties"]["norm"]["anyOf"]


def test_json_schema() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "vshift config"
    assert {"base", "name", "network", "grid"} <= set(schema["properties"])
    assert not [key for key, field in _fields(schema) if not field.get("description")]
    assert '"required"' not in json.dumps(schema)
    assert '"oneOf"' not in json.dumps(schema)
