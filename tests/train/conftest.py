"""A run with every measurement turned on, which several modules look at."""

import json

import pytest

from tests.configs import make_config
from vshift.data import load
from vshift.runs import prepare
from vshift.train.progress import Reporter
from vshift.train.run import train_in

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
METHODS = ["swap", "precise", "layerwise", "dropout_on", "batch", "mix"]


def read(folder, name):
    return json.loads((folder.path / name).read_text())


@pytest.fixture(scope="session")
def measured_run(tmp_path_factory):
    """A short run with every measurement turned on; tests that change a file take a copy."""
    config = make_config(
        network={"name": "preresnet", "depth": 8, "noise": NOISE},
        data={"name": "shapes", "train": 640, "test": 200, "batch_size": 32},
        recalibration={"methods": METHODS, "batches": 10},
        measure={
            "eval_batches": 5, "explain_batches": 3, "modes": True, "monte_carlo": 4,
            "monte_carlo_bn": 3,
        },
    )  # fmt: skip
    folder, _ = prepare(tmp_path_factory.mktemp("runs"), config, 0)
    status = train_in(folder, config, 0, load(config.data, "cpu"), Reporter(quiet=True))
    folder.mark_finished(status)
    folder.close()
    return folder
