"""`vshift schema`."""

import json


def test_schema_is_json(vshift):
    code, out, _ = vshift("schema")
    assert code == 0
    assert "network" in json.loads(out)["properties"]
