"""Runs that are killed at random moments end in the same bits as runs that are not.

`make soak` kills 200 times; KILLS and SEED choose other numbers.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.soak.harness import (
    Case,
    Trainer,
    differences,
    phases,
    train_killed,
    train_whole,
)

KILLS = int(os.environ.get("KILLS", "12"))
GENUINE = 1  # kills of processes that import everything themselves, at 3 to 5 s a start
SEED = int(os.environ.get("SEED", "0"))

RESNET = """
data: {name: shapes, train: 120, test: 40, batch_size: 16, validation: 20}
network:
  name: preresnet
  depth: 8
  noise: {kind: dropout, rate: 0.5, position: before_last_bn}
epochs: 3
schedule: {name: onecycle, peak: 0.1}
measure: {eval_batches: 2, eval_epochs: all, explain_batches: 2}
average: {kind: swa, start: 0.3}
checkpoint: {minutes: 0.001}
hardware: {device: cpu, threads: 1}
"""
# Every measurement there is, in short epochs, with checkpoints every 30 ms.
MLP = """
data: {name: shapes, train: 120, test: 50, batch_size: 10}
network: {name: mlp, widths: [64, 64], noise: {kind: gaussian, rate: 0.3, position: before_bn}}
norm: {kind: batch, momentum: null}
epochs: 12
measure: {eval_batches: 2, every: 2, modes: true, monte_carlo: 2, monte_carlo_bn: 2}
optimizer: {name: adamw}
average: {kind: ema, decay: 0.9, buffers: [own, copied, averaged, precise]}
recalibration: {methods: [swap, precise, layerwise, dropout_on, batch, mix], batches: 4}
checkpoint: {every: 3, minutes: 0.0005, keep: 3}
hardware: {device: cpu, precision: float32, threads: 1}
"""
CONFIGS = {"resnet": RESNET, "mlp": MLP}


@pytest.mark.timeout(7200)
def test_killed_runs_end_in_the_same_bits(server, tmp_path: Path, capsys) -> None:
    chance = random.Random(SEED)
    trainer = Trainer(server)
    seconds: dict[str, float] = {}
    for name, text in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        config, twice = tmp_path / f"{name}.yaml", (tmp_path / "warm-up", tmp_path / "whole")
        seconds[name] = min(train_whole(trainer, config, runs) for runs in twice)
        same = differences(*(runs / name / "seed-0" for runs in twice))
        assert same == [], "two runs that nobody killed differ"
    cases: list[Case] = []
    while (count := sum(len(case.kills) for case in cases)) < KILLS:
        name = list(CONFIGS)[len(cases) % len(CONFIGS)]
        runs = tmp_path / f"killed-{len(cases)}"
        config = tmp_path / f"{name}.yaml"
        wanted = min(chance.randint(2, 6), KILLS - count)
        case = train_killed(trainer, config, runs, wanted, seconds[name], chance)
        case.differences = differences(*(r / name / "seed-0" for r in (tmp_path / "whole", runs)))
        cases.append(case)
    _report(cases, capsys)
    assert [case for case in cases if case.differences] == []
    landed = phases(cases)
    assert landed["training"] + landed["writing"] >= KILLS / 3


@pytest.mark.timeout(600)
def test_killed_processes_of_the_command_line_end_in_the_same_bits(
    server, tmp_path: Path, capsys
) -> None:
    config = tmp_path / "mlp.yaml"
    config.write_text(MLP.replace("epochs: 12", "epochs: 4"))
    train_whole(Trainer(server), config, tmp_path / "whole")
    genuine = Trainer(None)
    seconds = train_whole(genuine, config, tmp_path / "again")
    whole, again = (tmp_path / runs / "mlp" / "seed-0" for runs in ("whole", "again"))
    assert differences(whole, again) == []  # a fork trains what a process of its own trains
    chance, cases = random.Random(SEED + 1), list[Case]()
    while (count := sum(len(case.kills) for case in cases)) < GENUINE:
        runs = tmp_path / f"killed-{len(cases)}"
        case = train_killed(genuine, config, runs, GENUINE - count, 0.9 * seconds, chance)
        case.differences = differences(whole, runs / "mlp" / "seed-0")
        cases.append(case)
    _report(cases, capsys)
    assert [case for case in cases if case.differences] == []


def _report(cases: list[Case], capsys) -> None:
    kills = sum(len(case.kills) for case in cases)
    identical = sum(len(case.kills) for case in cases if not case.differences)
    with capsys.disabled():
        print(f"\nseed {SEED}:")
        for number, case in enumerate(cases):
            for kill in case.kills:
                print(f"  run {number}: {kill}")
            if case.differences:
                print(f"  run {number} differs: {', '.join(case.differences)}")
        print(f"  kills landed in: {dict(phases(cases))}")
        print(f"{identical} of {kills} identical ({len(cases)} runs)")
