"""`vshift inspect`."""

import json


def test_inspect_json(vshift, config):
    code, out, _ = vshift("inspect", config, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["parameters"] == 77850
    assert found["bn_layers"] == 7
    assert {"name", "op", "output_shape"} == set(found["layers"][0])


def test_inspect_text_shows_the_block_order(vshift, config):
    _, out, _ = vshift("inspect", config)
    assert "block order: bn relu conv3x3 noise1 bn relu conv3x3" in out
    assert "77,850 parameters" in out
