"""`vshift inspect`."""

import json

import pytest
from rich.text import Text

from vshift.cli.inspect import short_place


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


@pytest.mark.parametrize(
    ("noise", "place", "short"),
    [
        ("layer1.0.bn2.noise1", "before layer1.0.bn2", "before bn2"),
        ("layer1.0.conv1.noise1", "after layer1.0", "after layer1.0"),
        ("layer1.noise1", "before layer1.bn1", "before bn1"),
        ("layer1.noise1", "before layer2.bn1", "before layer2.bn1"),
    ],
)
def test_a_place_does_not_repeat_the_noise_s_name(noise, place, short):
    assert short_place(noise, place) == [short]


def test_noise_by_pattern_fits_a_terminal(vshift, config):
    part = "{name: 'torchvision:resnet18', noise: {kind: dropout, rate: 0.3, before: '*bn2'}}"
    code, out, _ = vshift("inspect", config, "--set", f"network={part}")
    assert code == 0
    _, table = out.split("\n\n")
    assert "layer1.0.bn2.noise1    Dropout rate=0.3, variance=0.4286, before bn2" in table
    assert max(map(len, table.splitlines())) <= 80


def test_a_narrow_terminal_breaks_no_name_in_a_word(vshift, config, monkeypatch):
    part = "{name: densenet, depth: 16, noise: {kind: gaussian, rate: 0.3, before: '*.bn*'}}"
    words = ["inspect", config, "--set", f"network={part}"]
    whole = set(vshift(*words)[1].split())
    monkeypatch.setattr("vshift.tables.width_of", lambda *_: 60)
    lines = Text.from_ansi(vshift(*words)[1]).plain.splitlines()
    assert max(map(len, lines)) <= 60
    for word in " ".join(lines).replace("─", "").split():
        assert word[-1] in ".-_=" or any(name.endswith(word) for name in whole), word


def test_the_order_is_that_in_which_a_block_runs(vshift, config):
    """A residual block adds, then its last activation acts."""
    code, out, _ = vshift("inspect", config, "--set", "network={name: resnet, depth: 8}", "--json")
    assert code == 0
    ops = {layer["name"]: layer["op"] for layer in json.loads(out)["layers"]}
    names = [name for name in ops if name.startswith("stage1.block1")]
    assert names[-3:] == ["stage1.block1.branch.bn2", "stage1.block1", "stage1.block1.exit"]
    assert [ops[name] for name in names[-2:]] == ["add", "ReLU"]


def test_multiply_accumulates_are_called_macs(vshift, config):
    _, out, _ = vshift("inspect", config)
    assert " M MACs per image, 7 BN layers" in out
