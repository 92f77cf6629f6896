"""`vshift recalibrate`."""

import json
from pathlib import Path

from vshift.cli.recalibrate import costs_in_words, modes_table, scores_table
from vshift.config.recalibration import METHODS
from vshift.tables import render


def test_recalibrate(vshift, config):
    vshift("train", config)
    code, out, _ = vshift("recalibrate", "runs/small/seed-0", "--method", "precise", "--batches", 3)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "runs/small/seed-0", "method", "none", "precise",
    ]  # fmt: skip
    code, out, _ = vshift("recalibrate", "runs", "--json", "--set", "recalibration.batches=2")
    (rows,) = json.loads(out).values()
    summary = json.loads(Path("runs/small/seed-0/summary.json").read_text())
    assert rows[0]["shift_ratio_mean"] == summary["shift_ratio_mean"] > 0
    assert [row["method"] for row in rows] == ["none", "swap", "precise", "layerwise"]
    assert rows[1]["batches"] == 2
    code, _, err = vshift("recalibrate", "runs", "--method", "prcise")
    assert code == 2
    assert "--method prcise: no such method; did you mean `precise`?" in err
    code, out, _ = vshift("recalibrate", "runs", "--modes", "--method", "precise")
    assert "test error %" in out
    assert "\n\n data  noise  statistics" in out
    assert "the running statistics cost" in out
    code, out, _ = vshift("recalibrate", Path("runs").rename("\x1b[1mruns"))
    assert code == 0
    assert out.startswith("\\x1b[1mruns/small/seed-0\n")


def test_the_help_lists_the_methods(vshift):
    code, out, _ = vshift("recalibrate", "--help")
    assert code == 0
    words = " ".join(out.split())
    assert f"{', '.join([*METHODS][:-1])} or {[*METHODS][-1]}; repeatable." in words
    assert "Default: swap, precise and layerwise, the readings of the paper's Adjust." in words


def test_rows_as_text():
    rows = [
        {"method": "none", "test_accuracy": 40.0},
        {
            "method": "precise",
            "test_accuracy": 55.5,
            "shift_ratio_mean": 1.0,
            "shift_ratio_max": 1.5,
        },
    ]
    _, *cells = (line.split() for line in render(scores_table(rows), "table").splitlines())
    assert cells[0] == ["none", "60.00", "+0.00", "–", "–"]
    assert cells[1] == ["precise", "44.50", "+15.50", "1.000", "1.500"]


def test_the_mode_matrix_is_shown_as_a_table():
    rows = [
        {"data": "train", "noise": "on", "statistics": "batch", "loss": 1.5, "accuracy": 40.7},
        {"data": "test", "noise": "off", "statistics": "precise", "loss": 12.5, "accuracy": None},
    ]
    assert render(modes_table(rows), "table").splitlines() == [
        " data  noise  statistics     loss  accuracy %",
        "train     on       batch   1.5000       40.70",
        " test    off     precise  12.5000           –",
    ]


def test_the_costs_of_noise_and_statistics_are_told():
    scores = {("on", "running"): 60.0, ("off", "precise"): 63.0, ("off", "running"): 55.5}
    rows = [
        {"data": "test", "noise": noise, "statistics": name, "accuracy": value}
        for (noise, name), value in scores.items()
    ]
    text = " ".join(costs_in_words(rows).split())
    assert "the noise itself costs 3.00 points (noise off" in text
    assert "the running statistics cost 7.50 (precise minus" in text
    numbers = [{**row, "accuracy": None, "r2": row["accuracy"] / 100} for row in rows]
    assert "costs 3.00 points of 100 R²" in costs_in_words(numbers)
