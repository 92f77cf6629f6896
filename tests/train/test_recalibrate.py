"""`vshift recalibrate`."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.configs import make_config
from tests.train.conftest import read
from vshift.data import load
from vshift.errors import ConfigError, RunError
from vshift.runs import RunFolder, prepare
from vshift.train.progress import Reporter
from vshift.train.recalibrate import open_run, recalibrate_run
from vshift.train.run import train_in


@pytest.fixture(scope="module")
def run(measured_run, tmp_path_factory):
    """A copy of a run, to be recalibrated."""
    path = tmp_path_factory.mktemp("copy") / "seed-0"
    return RunFolder(shutil.copytree(measured_run.path, path))


def test_monte_carlo_bn_is_drawn_from_the_seed_and_reproduced(run):
    summary = read(run, "summary.json")
    rows = recalibrate_run(run.path, ['recalibration.methods=["precise"]', "measure.modes=false"])
    row = next(row for row in rows if row["method"] == "monte_carlo_bn")
    mine = {key: value for key, value in row.items() if key.startswith("monte_carlo_bn_")}
    # Training scores with its fused kernels, which round differently.
    assert mine == pytest.approx({key: summary[key] for key in mine}, rel=1e-3)
    again = recalibrate_run(run.path, ["recalibration.methods=[]", "measure.modes=false"])
    assert again[-1] == row
    assert row["test_accuracy"] == summary["monte_carlo_bn_accuracy"]
    assert row["monte_carlo_bn_passes"] == 3
    assert row["monte_carlo_bn_spread"] > 0
    # No noise and nearly the statistics that precise averages, so not far from it.
    precise = next(row for row in rows if row["method"] == "precise")
    assert row["test_nll"] == pytest.approx(precise["test_nll"], rel=0.3)


def test_recalibrate_writes_beside_the_run_and_never_touches_it(run):
    kept = ("checkpoint.pt", "summary.json", "metrics.jsonl", "layers.jsonl", "config.yaml")
    before = {name: hashlib.sha256((run.path / name).read_bytes()).digest() for name in kept}
    rows = recalibrate_run(run.path, ['recalibration.methods=["precise"]', "measure.modes=false"])
    methods = ["none", "precise", "monte_carlo", "monte_carlo_bn"]
    assert [row["method"] for row in rows] == methods
    after = {name: hashlib.sha256((run.path / name).read_bytes()).digest() for name in kept}
    assert before == after
    assert rows[0]["test_accuracy"] == read(run, "summary.json")["test_accuracy"]
    assert rows[1]["test_accuracy"] == read(run, "summary.json")["test_accuracy_precise"]


def test_the_new_statistics_are_saved_by_method(run):
    from safetensors.numpy import load_file

    recalibrate_run(run.path, ['recalibration.methods=["layerwise"]'])
    saved = load_file(run.path / "recalibration.safetensors")
    assert sum(name.startswith("layerwise/") for name in saved) == 2 * 7
    assert saved["layerwise/head.bn1.running_var"].shape == (64,)


def test_other_methods_results_stay(run):
    recalibrate_run(run.path, ['recalibration.methods=["swap"]'])
    before = {row["method"]: row for row in read(run, "recalibration.json")["methods"]}
    recalibrate_run(run.path, ['recalibration.methods=["precise"]', "recalibration.batches=2"])
    after = {row["method"]: row for row in read(run, "recalibration.json")["methods"]}
    assert after["swap"] == before["swap"]
    assert after["precise"]["batches"] == 2


def test_a_method_that_does_not_exist_is_refused(run):
    with pytest.raises(ConfigError, match=r"recalibration\.methods.*precice.*did you mean"):
        recalibrate_run(run.path, ['recalibration.methods=["precice"]'])


def test_a_run_that_is_not_done_is_refused(tmp_path):
    folder, _ = prepare(tmp_path, make_config(), 0)
    folder.close()
    with pytest.raises(RunError, match="this run is running, not done"):
        open_run(folder.path)


def test_a_network_without_bn_is_refused(tmp_path):
    config = make_config(norm={"kind": "none"}, epochs=1)
    folder, _ = prepare(tmp_path, config, 0)
    train_in(folder, config, 0, load(config.data, "cpu"), Reporter(quiet=True))
    folder.mark_finished("done")
    folder.close()
    with pytest.raises(RunError, match="no BN layer to recalibrate"):
        recalibrate_run(folder.path, [])


def test_a_run_of_version_0_1_is_recalibrated(tmp_path):
    """Its config, checkpoint and results were written by the code before the names of now."""
    old = Path(__file__).parents[1] / "runs" / "old_run" / "seed-0"
    path = shutil.copytree(old, tmp_path / "seed-0")
    rows = {row["method"]: row for row in recalibrate_run(path, ["recalibration.methods=[swap]"])}
    summary = json.loads((old / "summary.json").read_text())
    assert rows["none"]["test_accuracy"] == summary["test_accuracy"]
    kept = json.loads((path / "recalibration.json").read_text())["methods"]
    assert {row["method"] for row in kept} == {"none", "swap", "precise", "mix", "monte_carlo"}
