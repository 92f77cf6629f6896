"""Training on images, numbers and a loss of one's own, from the command line."""

import json
import shutil
from pathlib import Path

import pytest

CODE = """
import torch

def make(count=96, bad=None):
    random = torch.Generator().manual_seed(count)
    images = torch.randn(count, 1, 8, 8, generator=random)
    targets = torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3))], 1)
    if bad is not None:
        targets[bad] = torch.nan
    return (images[:64], targets[:64]), (images[64:], targets[64:])

def absolute(output, targets):
    return (output - targets).abs().mean()
"""
CONFIG = """
data: {name: mine.py:make, batch_size: 24}
network: {name: mlp, widths: [16]}
loss: {name: mine.py:absolute}
epochs: 2
measure: {eval_batches: 2, modes: true}
hardware: {device: cpu, precision: float32, threads: 1}
"""


@pytest.fixture
def own_config(vshift):
    """A config of two numbers to predict, an mlp and a loss of one's own, in the work folder."""
    Path("mine.py").write_text(CODE)
    Path("mine.yaml").write_text(CONFIG)
    return "mine.yaml"


def summary(folder):
    return json.loads((Path(folder) / "mine/seed-0/summary.json").read_text())


def test_numbers_and_a_loss_of_ones_own(vshift, own_config):
    code, _, err = vshift("train", own_config)
    assert code == 0
    assert "test RMSE" in err
    scores = summary("runs")
    assert scores["test_rmse"] > 0
    assert scores["test_accuracy"] is None
    # Again from the run folder's own copy, in another place.
    shutil.copytree("runs/mine/seed-0", "moved")
    Path("mine.py").unlink()
    assert vshift("train", "moved/config.yaml", "--runs-dir", "again")[0] == 0
    assert summary("again") == scores
    code, out, _ = vshift("compare", "runs", "--format", "md")
    assert code == 0
    assert "test RMSE" in out


def test_bad_targets_are_a_sentence_and_nothing_is_written(vshift, own_config):
    for change, words in (
        ("data.args={bad: 70}", "the test targets hold NaN or infinite values, first of image 6"),
        ("loss={name: cross_entropy}", "cross_entropy is for classes, and the targets of"),
        ("data.args={cuont: 70}", "takes no 'cuont'; did you mean `count`"),
        ("data.name=mine.py:mak", "has no 'mak'; did you mean `make`"),
    ):
        code, out, err = vshift("train", own_config, "--set", change)
        assert (code, out) == (2, "")
        assert words in err
        assert "Traceback" not in err
    assert not Path("runs").exists()


def test_the_documents_data_and_loss_train(vshift):
    lines = (Path(__file__).parents[2] / "docs" / "config.md").read_text().splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith("    data: {name: my_data.py")
    )
    block = "\n".join(line[4:] for line in lines[start : start + 3])
    Path("my_data.py").write_text(
        "import torch\n"
        "def make(split):\n"
        "    part = torch.rand(40, 3, 8, 8), torch.arange(40) % split\n"
        "    return part, part\n"
    )
    rest = CONFIG[CONFIG.index("epochs") :] + "network: {name: mlp, widths: [8]}\n"
    Path("page.yaml").write_text(f"{block}\n{rest}")
    assert vshift("train", "page.yaml")[0] == 0
    scores = json.loads(Path("runs/page/seed-0/summary.json").read_text())
    assert scores["test_accuracy"] is not None


def test_checking_and_inspecting(vshift, own_config):
    assert vshift("check", own_config)[0] == 0
    code, out, _ = vshift("inspect", own_config, "--json")
    assert code == 0
    assert json.loads(out)["layers"][-1]["output_shape"][-1] == 2


def test_training_on_one_hot_floats_says_once_that_they_are_numbers(vshift, own_config):
    Path("mine.py").write_text(
        CODE + "\ndef one_hot():\n    train, test = make()\n    targets = torch.eye(4)\n"
        "    return [(x, targets[torch.arange(len(x)) % 4]) for x, _ in (train, test)]\n"
    )
    code, _, err = vshift(
        "train", own_config, "--set", "data.name=mine.py:one_hot", "--set", "epochs=1",
        "--set", "seeds=[0, 1]", "--set", "measure.every=0",
    )  # fmt: skip
    assert code == 0
    assert err.count("note: data.name: ") == 1
    assert "are predicted as numbers" in err
