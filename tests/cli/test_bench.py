"""`vshift bench --trial`: what `hardware.precision: auto` becomes, and its times."""

from pathlib import Path

import pytest

from vshift.train import trial

CONFIG = """
name: mine
data: {name: shapes, train: 64, test: 20, batch_size: 32}
network: {name: mlp, widths: [8]}
epochs: 1
hardware: {threads: 1, precision: float32}
"""


def test_a_trial_is_shown_and_kept(vshift, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path / "cache")
    Path("mine.yaml").write_text(CONFIG)
    code, out, err = vshift("bench", "--trial", "mine.yaml", "--device", "cpu")
    assert code == 0
    heads, *rows = [line.split() for line in out.splitlines()]
    assert heads == ["config", "precision", "step", "images/s", "auto"]
    assert {"mine"} == {row[0] for row in rows}
    assert {("bf16", "fused"), ("float32", "fused")} <= {(row[1], row[2]) for row in rows}
    assert all(int(row[3].replace(",", "")) > 0 for row in rows)
    assert [row[4] for row in rows].count("chosen") == 1
    assert "images/s in a trial, kept for this processor" in err
    (kept,) = (tmp_path / "cache" / "trials").glob("*.json")
    before = kept.stat().st_mtime_ns
    assert vshift("bench", "--trial", "mine.yaml", "--device", "cpu", "--quiet")[2] == ""
    assert kept.stat().st_mtime_ns > before  # tried anew


@pytest.mark.parametrize("words", [["--trial"], ["mine.yaml"]])
def test_trial_and_configs_go_together(vshift, words):
    code, _, err = vshift("bench", *words)
    assert code == 2
    assert "--trial goes with the configs to try" in err
