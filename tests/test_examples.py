"""The example of every kind of part of one's own trains as it is written."""

from pathlib import Path

import pytest

from vshift.config import load
from vshift.config.own import own_parts
from vshift.runs import RunFolder
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds

CONFIG = Path(__file__).parents[1] / "examples" / "own_parts.yaml"
CPU = "hardware={device: cpu, threads: 1}"


@pytest.mark.parametrize("norm", [None, "examples/own_parts.py:Centred"])
def test_own_parts_train(tmp_path: Path, norm: str | None) -> None:
    config = load(CONFIG, [CPU, *([f"norm={{kind: {norm}}}"] if norm else [])])
    assert len(own_parts(config)) == 6 + (norm is not None)
    train_seeds(config, tmp_path, False, Reporter(quiet=True))
    folder = RunFolder(tmp_path / "own_parts" / "seed-0")
    first, last = folder.metrics()
    assert folder.status == "done"
    assert last["train_loss"] < first["train_loss"]
    assert last["learning_rate"] == pytest.approx(0.05 * (1 - 13 / 14))
