"""Noise by pattern from the command line, in a network of one's own."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import refused
from tests.soak.harness import differences
from tests.train.test_checkpointer import attempt
from vshift.config import load
from vshift.runs import RunFolder

FILE = """
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return F.relu(y)

class Net(nn.Module):
    def __init__(self, classes, channels, width=8):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.pool(x).flatten(1))

class Looks(Net):
    def forward(self, x):
        return super().forward(x if float(x.sum()) < 1e9 else -x)
"""
CONFIG = """
data: {name: shapes, train: 200, test: 100, batch_size: 50}
network: {name: net.py:Net, noise: {kind: dropout, rate: 0.5, before: "blocks.*.bn2"}}
epochs: 1
measure: {eval_batches: 2, explain_batches: 3}
hardware: {device: cpu, precision: float32, threads: 1}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FILE)
    Path("own.yaml").write_text(CONFIG)
    return tmp_path / "own.yaml"


def layers():
    return {row["layer"]: row for row in RunFolder(Path("runs/own/seed-0")).layers()}


def test_a_pattern_is_trained_measured_predicted_and_compared(vshift, config):
    assert vshift("train", config)[0] == 0
    rows = layers()
    assert [name for name, row in rows.items() if row["noise_before"]] == [
        "blocks.0.bn2",
        "blocks.1.bn2",
    ]
    for name in ("blocks.0.bn2", "blocks.1.bn2"):
        assert rows[name]["predicted_exact"] is True
        assert rows[name]["predicted_ratio"] == pytest.approx(rows[name]["local_ratio"], rel=0.1)
    other = vshift(
        "train", config, "--set", "name=conv", "--set",
        "network.noise={kind: dropout, rate: 0.5, position: before_last_conv}",
    )  # fmt: skip
    assert other[0] == 0
    code, out, _ = vshift("compare", "runs", "--by", "network.noise.position")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[1:3]] == [
        "before blocks.*.bn2",
        "before_last_conv",
    ]


def test_weights_are_saved_under_the_networks_own_names(vshift, config):
    assert vshift("train", config)[0] == 0
    names = RunFolder(Path("runs/own/seed-0")).load_checkpoint()["model"]
    assert not any("noise" in name for name in names)
    assert "blocks.0.bn2.running_var" in names


def test_a_network_that_cannot_be_traced_is_trained_without_predictions(vshift, config):
    code, _, err = vshift("train", config, "--set", "network.name=net.py:Looks")
    assert code == 0
    assert "torch.fx cannot trace this network; which noise reaches a layer" in err
    rows = layers()
    assert len(rows) == 4
    for row in rows.values():
        assert row["noise_before"] is None
        assert row["predicted_ratio"] is None
        assert row["shift_ratio"] >= 1
    assert vshift("report", "runs")[0] == 0


def test_inspect_says_where_every_noise_sits(vshift, config):
    _, out, _ = vshift("inspect", config, "--json")
    noise = [row for row in json.loads(out)["layers"] if "place" in row]
    assert [(row["name"], row["place"]) for row in noise] == [
        (f"blocks.{i}.bn2.noise1", f"before blocks.{i}.bn2") for i in (0, 1)
    ]
    _, out, _ = vshift("inspect", config)
    assert "Dropout rate=0.5, variance=1, before bn2" in out


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        ("before: 'blocks.*.bn3'", "network.noise.before: no module is called 'blocks.*.bn3'; the "
         "nearest are blocks."),
        ("after: blocks", "network.noise.after: blocks is never called in a forward pass"),
        ("before: []", "network.noise.before: empty; give at least one"),
        ("before: [fc, fc]", "network.noise.before: a pattern is listed twice"),
        ("before: 3", "network.noise.before: 3 is not text"),
    ],
)  # fmt: skip
def test_bad_places_are_refused_before_anything_is_written(vshift, config, noise, text):
    found = refused(
        vshift, "train", config, "--set", f"network.noise={{kind: dropout, rate: 0.5, {noise}}}"
    )
    assert text in found.replace("\n", " ")


def test_positions_of_a_network_that_cannot_be_traced_are_refused(vshift, config):
    noise = "network.noise={kind: dropout, rate: 0.5, position: before_bn}"
    found = refused(vshift, "train", config, "--set", "network.name=net.py:Looks", "--set", noise)
    assert "network.noise.position: before_bn is unknown in this network: the model cannot" in found
    its = "blocks.0.bn1, blocks.0.bn2, blocks.1.bn1 and 1 more"
    assert f"name modules with before or after (BN layers: {its})" in found


def test_a_run_that_stops_inside_an_epoch_resumes_bit_for_bit(config, tmp_path):
    chosen = load(config)
    whole, status, _ = attempt(tmp_path / "whole", chosen)
    assert status == "done"
    _, status, _ = attempt(tmp_path / "parts", chosen, steps=2)
    assert status == "interrupted"
    folder, status, _ = attempt(tmp_path / "parts", chosen)
    assert status == "done"
    assert differences(whole.path, folder.path) == []
