"""The scripts of examples/ run and say what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import broken_models, broken_parts, lightning_style, patients, plain_loop
from vshift.runs import find_runs

ROOT = Path(__file__).parents[2]


def test_plain_loop(tmp_path, capsys):
    path = plain_loop.main(tmp_path)
    (run,) = find_runs([tmp_path])
    assert run.path == path
    assert run.summary["shift_ratio_max_layer"] == "bn2"
    assert "train_variance" in capsys.readouterr().out


def test_lightning_style():
    before, after = lightning_style.main()
    assert [finding.code for finding in before.findings] == ["never_updated"]
    assert before.findings[0].layer.startswith("net.bn")
    assert after.findings == []


def test_timm_drop_path():
    pytest.importorskip("timm", reason="the extra timm is not installed")
    from examples import timm_drop_path

    found = timm_drop_path.main()
    assert all("drop_path" in source.layer for source in found.noise.training)
    (finding,) = [f for f in found.findings if f.code == "variance_shift"]
    assert "drop_path" in finding.evidence["noise"][0]


def test_broken_models_prints_a_line_or_a_report(capsys):
    broken_models.main(["nonfinite"])
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("1. [high] nonfinite: ")]
    assert '"bn2"' in line


def test_a_fault_is_the_same_model_in_every_process(monkeypatch):
    """Its seed is set before its network is built."""
    for module in (patients, broken_models, broken_parts):
        monkeypatch.setattr(module, "fit", lambda model, *_, **how: model)
    for name, fault in broken_models.FAULTS.items():
        states = []
        for process in (1, 2):
            torch.manual_seed(process)
            states.append(fault(7, True).model.state_dict())
        torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True, msg=name)


def test_the_scripts_run_as_scripts():
    done = subprocess.run(
        [sys.executable, "-m", "examples.lightning_style"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "never_updated" in done.stdout
