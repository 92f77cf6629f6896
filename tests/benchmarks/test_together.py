"""`benchmarks.together` from start to table, on the CPU."""

import json
import sys

import pytest

from benchmarks import together

WORDS = ["--network", "preresnet-8", "--batch", "8", "--seeds", "2", "--steps", "3"]
WORDS += ["--repeats", "2", "--device", "cpu", "--threads", "1"]
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["together", *words, "--json", str(tmp_path)])
        code = together.main()
        files = list(tmp_path.rglob("*.json"))
        return code, capsys.readouterr(), json.loads(files[0].read_text()) if files else None

    return run


def test_all_ways_race_and_do_the_same_work(run):
    code, said, found = run(*WORDS)
    assert code == 0, said.err
    (case,) = found["cases"]
    rows = {row["name"]: row for row in case["contenders"]}
    assert list(rows) == ["one after the other", "processes", "stacked"]
    assert case["left_out"] == {"streams": "streams are CUDA's"}
    assert all(len(row["images_per_second"]["values"]) == 2 for row in rows.values())
    losses = [row["loss"] for row in rows.values()]
    # The same seeds: processes train exactly what one does; a stack's batches are others.
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=0.2)
    assert said.out.startswith("| network | noise")
    assert "| processes (fused) |" in said.out
    assert "| 1.00× |" in said.out
    assert "| streams | – | 0 | streams are CUDA's |" in said.out


@pytest.mark.parametrize(("words", "line"), [("no room\nat all", "no room"), ("", "no message")])
def test_a_contender_that_fails_is_left_out_with_its_reason(run, monkeypatch, words, line):
    def broken(work):
        raise RuntimeError(words)

    monkeypatch.setitem(together.CONTENDERS, "stacked", broken)
    monkeypatch.delitem(together.CONTENDERS, "processes")
    code, said, found = run(*WORDS)
    assert code == 0
    assert found["cases"][0]["left_out"]["stacked"] == f"RuntimeError: {line}"
    assert f"| stacked | – | 0 | RuntimeError: {line} |" in said.out


def test_a_stack_with_dropout_on_a_cpu_is_left_out(run, monkeypatch):
    monkeypatch.delitem(together.CONTENDERS, "processes")
    code, _, found = run(*WORDS, "--noise", "dropout")
    assert code == 0
    assert found["cases"][0]["left_out"]["stacked"].startswith("vmap cannot draw the 16 bits")


def test_an_unknown_network_is_refused(run):
    code, said, found = run("--network", "resnet-x", "--device", "cpu")
    assert code == 2
    assert "together: --networks resnet-x: not known" in said.err
    assert found is None


@pytest.mark.gpu
def test_all_ways_race_on_a_gpu(run):
    code, said, found = run(*WORDS[:-4], "--device", "cuda")
    assert code == 0, said.err
    assert found["cases"][0]["left_out"] == {}
    rows = {row["name"]: row for row in found["cases"][0]["contenders"]}
    assert rows["streams"]["step"] == rows["stacked"]["step"] == "captured"
