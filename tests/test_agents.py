"""AGENTS.md is true: its commands print the JSON that it says, its exit codes are the errors'."""

import json
import re
from pathlib import Path

import pytest

from vshift import errors

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "AGENTS.md").read_text("utf-8")
ROWS = re.findall(r"^\| `vshift (.+?)` \| (object|list)(.*?) \| (`.+`) \|$", TEXT, re.MULTILINE)
CONFIG = """\
name: a
data: {name: shapes, train: 64, test: 40, batch_size: 16}
network: {name: mlp, widths: [8, 8], noise: {kind: dropout, rate: 0.5, position: before_last_bn}}
epochs: 1
measure: {explain_batches: 2, eval_batches: 2}
recalibration: {batches: 2}
hardware: {device: cpu, threads: 1}
"""


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 45


def test_every_command_prints_the_json_that_it_says(vshift):
    Path("c.yaml").write_text(CONFIG)
    assert vshift("train", "c.yaml", "--runs-dir", "runs", "--quiet")[0] == 0
    places = {"CONFIG": "c.yaml", "RUNS": "runs", "RUN": "runs/a/seed-0"}
    assert len(ROWS) == 7
    for words, kind, items, keys in ROWS:
        code, out, err = vshift(*(places.get(word, word) for word in words.split()))
        assert code == 0, err
        found = json.loads(out)
        assert type(found) is {"object": dict, "list": list}[kind], words
        if items == " of lists, by run":
            (found,) = found.values()
        row = found[0] if isinstance(found, list) else found
        assert set(re.findall(r"`(\S+)`", keys)) <= set(row), words


def test_the_exit_codes_are_those_of_the_errors():
    sentence = TEXT[TEXT.index("Exit codes:") :]
    named = {int(code) for code in re.findall(r"\b\d+\b", sentence)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if hasattr(kind, "exit_code")}
    assert named == {0, 3} | codes | {errors.Interrupted("").exit_code, 143}


@pytest.mark.parametrize("name", re.findall(r"`make (\w+)`|^    make (\w+)", TEXT, re.MULTILINE))
def test_the_makefile_has_its_targets(name):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"^{''.join(name)}: ", makefile, re.MULTILINE)
