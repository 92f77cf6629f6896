"""Every command in a locale of ASCII only: no traceback, and a form for every character."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from vshift.cli import app

CONFIG = """
# ä, 中 and β ± σ: a config is UTF-8 wherever it is read
data: {name: shapes, train: 40, test: 40, batch_size: 20}
network: {name: mlp, widths: [8], noise: {kind: uniform, beta: 0.5, position: before_last_bn}}
epochs: 1
seeds: [0, 1]
measure: {eval_batches: 2, modes: true}
hardware: {device: cpu, precision: float32, threads: 1, step: eager}
"""
RUN = "runs/tiny/seed-0"
COMMANDS = [
    ["train", "tiny.yaml", "--seed", "0"],
    ["train", "nowhere-ä.yaml"],
    ["sweep", "tiny.yaml", "--set", "network.noise.beta=0.4", "--set", "name=weak"],
    ["sweep", "tiny.yaml", "--dry-run"],
    *(["compare", "runs", "--format", form] for form in ("table", "md", "latex", "csv", "html")),
    ["compare", "runs", "--where", "β == 1"],
    ["inspect", "tiny.yaml"],
    ["check", "tiny.yaml", "--set", "network.noise.beta=…"],
    ["recalibrate", RUN, "--method", "precise", "--modes"],
    ["report", "runs"],
    ["watch", "runs", "--once"],
    ["audit", RUN, "--data", "test", "--report", "audit.html"],
    ["schema"],
    ["compare", "-h"],
    ["data", "list"],
    ["data", "fetch", "cifär"],
    ["bench", "--networks", "nön"],
]
SCRIPT = """
import json, sys
from vshift.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["vshift", *words]
    try:
        main()
        codes.append(0)
    except SystemExit as stop:
        codes.append(stop.code or 0)
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""


def names(group, before=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from names(command, f"{before}{name} ")
        else:
            yield before + name


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The exit codes, stdout and stderr of all commands, one after the other in one process."""
    folder = tmp_path_factory.mktemp("locale")
    (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(COMMANDS)],
        cwd=folder, capture_output=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": path, "LC_ALL": "C", "PYTHONUTF8": "0",
             "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return json.loads((folder / "codes.json").read_text()), done.stdout, done.stderr


def test_every_command_is_tried():
    tried = {" ".join(words[:2]) if words[0] == "data" else words[0] for words in COMMANDS}
    assert tried == set(names(typer.main.get_command(app)))


def test_none_ends_in_a_traceback(printed):
    codes, _, err = printed
    wrong = [words for words, code in zip(COMMANDS, codes, strict=True) if code]
    assert [words[0] for words in wrong] == ["train", "compare", "check", "data", "bench"]
    assert set(codes) == {0, 2}
    assert b"Traceback" not in err


def test_what_is_no_ascii_has_a_form_of_its_own(printed):
    _, out, err = printed
    assert out.isascii()
    assert err.isascii()
    table, *_ = out.partition(b"| config")
    assert b" +/- " in table
    assert b"beta" in out
    assert rb"\u00b1" not in out
    assert rb"\u2013" not in out
