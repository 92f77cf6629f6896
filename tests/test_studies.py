"""Every config of configs/studies: its header, its points, and a tiny run of one of them."""

import json
from pathlib import Path

import pytest

from tests.configs import spelled
from vshift.config import config_hash, expand, load
from vshift.sweep.plan import plan
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds

STUDIES = sorted(Path("configs/studies").glob("*.yaml"))
CIFAR = "data={name: imagefolder, root: images, train_limit: 4000, batch_size: 128}"
TINY = [
    "data={name: shapes, train: 64, test: 20, batch_size: 32}",
    "epochs=1",
    "seeds=[0]",
    "hardware={device: cpu, precision: float32, threads: 1}",
    "measure.eval_batches=2",
    "measure.explain_batches=1",
    "recalibration.batches=2",
]
# What ends too early for what the study changes on the way.
LONGER = {
    "early-late": ["epochs=2"],
    "renorm": ["epochs=5", "data={name: shapes, train: 448, test: 20, batch_size: 32}"],
}
SEEDS = {"headline": 5, "deep-wide": 2}  # the others have 3
every_study = pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)


def test_there_are_studies():
    assert len(STUDIES) > 15


@every_study
def test_it_opens_with_question_command_time_and_result(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    starts = [line[2:11].strip() for line in header if not line.startswith("#   ")]
    assert starts == ["Question:", "Command:", "Expected:", "Result:"]
    command = f"vshift sweep {path} --runs-dir runs/studies/{path.stem}"
    assert f"# Command:  {command}" in header
    assert max(map(len, path.read_text().splitlines())) <= 100


@every_study
@pytest.mark.parametrize("sets", [[], [CIFAR]], ids=["shapes", "images"])
def test_it_names_several_configs_that_differ(path, sets):
    """On other data too, and each as the command line of a sweep spells it."""
    jobs = plan([path], [*sets, "seeds=[7]"])
    assert len(jobs) > 1
    assert len({config_hash(job.config) for job in jobs}) == len(jobs)
    for job in jobs:
        again = load(path, [*sets, *spelled(job.point)], seed=7)
        assert (again.name, config_hash(again)) == (job.config.name, config_hash(job.config))
        assert job.config.hardware.threads == 1
    assert len(expand(path)[0].config.seeds) == SEEDS.get(path.stem, 3)


@every_study
def test_a_tiny_version_trains(path, tmp_path):
    config = expand(path, [*TINY, *LONGER.get(path.stem, [])])[-1].config
    train_seeds(config, tmp_path, False, Reporter(quiet=True))
    summary = json.loads((tmp_path / config.name / "seed-0" / "summary.json").read_text())
    assert summary["test_loss"] > 0
