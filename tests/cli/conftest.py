"""A small config, and commands that must be refused."""

from pathlib import Path

import pytest

CONFIG = """
data: {name: shapes, train: 200, test: 100, batch_size: 50}
network:
  name: preresnet
  depth: 8
  noise: {kind: dropout, rate: 0.5, position: before_last_bn}
epochs: 1
measure: {eval_batches: 2}
hardware: {device: cpu, precision: float32, threads: 1}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def refused(vshift, *words, runs=Path("runs")):
    """The message of a command that must end with exit code 2 and write nothing."""
    code, out, err = vshift(*words)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert not list(runs.rglob("*.json*")) if runs.exists() else True
    return err
