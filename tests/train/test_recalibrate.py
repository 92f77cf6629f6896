"""`vshift recalibrate`, and what train does after the last epoch."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.configs import make_config
from vshift.cli.recalibrate import scores_table
from vshift.data import load
from vshift.errors import ConfigError, RunError
from vshift.runs import prepare
from vshift.tables import render
from vshift.train.context import TrainingContext
from vshift.train.progress import Reporter
from vshift.train.recalibrate import open_run, recalibrate_run
from vshift.train.run import train_in

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
METHODS = ["swap", "precise", "layerwise", "dropout_on", "batch", "mix"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    """A short run with every measurement turned on."""
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


def read(folder, name):
    return json.loads((folder.path / name).read_text())


def test_train_recalibrates_by_every_method_the_config_lists(run):
    rows = {row["method"]: row for row in read(run, "recalibration.json")["methods"]}
    assert list(rows) == ["none", *METHODS]
    assert rows["layerwise"]["shift_ratio_max"] < 1.05
    assert rows["dropout_on"]["shift_ratio_max"] > 1.2
    assert {method: row.get("own") for method, row in rows.items()} == {
        "none": None, **dict.fromkeys(METHODS, 0.5), "batch": 1.0
    }  # fmt: skip
    assert "batch_weight" not in rows["mix"]
    summary = read(run, "summary.json")
    assert summary["test_accuracy_precise"] == rows["precise"]["test_accuracy"]
    assert summary["recalibration"] == "swap"
    assert summary["test_error_recalibrated"] == pytest.approx(100 - summary["test_accuracy_swap"])


def test_mode_matrix_covers_both_data_parts_and_every_state(run):
    rows = read(run, "modes.json")["modes"]
    found = {(row["data"], row["noise"], row["statistics"]) for row in rows}
    states = ("batch", "running", "swap", "precise", "layerwise", "dropout_on")
    assert found == {(d, n, s) for d in ("train", "test") for n in ("on", "off") for s in states}
    by_key = {(row["data"], row["noise"], row["statistics"]): row for row in rows}
    summary = read(run, "summary.json")
    plain = by_key["test", "off", "running"]["accuracy"]
    assert plain == pytest.approx(summary["test_accuracy"], abs=1.01)  # other batch sizes round
    stale = by_key["test", "off", "batch"]["accuracy"] - plain
    assert summary["test_stale_cost"] == pytest.approx(stale)
    assert summary["monte_carlo_passes"] == 4
    assert summary["monte_carlo_spread"] > 0


CALIBRATION = ("nll", "brier", "ece")


def test_calibration_stands_beside_every_accuracy(run):
    summary, last = read(run, "summary.json"), run.metrics()[-1]
    rows = {row["method"]: row for row in read(run, "recalibration.json")["methods"]}
    for key in CALIBRATION:
        assert summary[f"test_{key}"] == last[f"test_{key}"] == rows["none"][f"test_{key}"] > 0
        for method in METHODS:
            assert summary[f"test_{key}_{method}"] == rows[method][f"test_{key}"] > 0
        for method in ("monte_carlo", "monte_carlo_bn"):
            assert summary[f"{method}_{key}"] > 0
    assert summary["test_nll"] == pytest.approx(summary["test_loss"], rel=1e-6)
    # Less than chance on the wrong side: 10 classes of equal size have Brier 0.9, the worst is 2.
    assert summary["test_brier"] < 2
    assert summary["test_ece"] <= 100
    modes = read(run, "modes.json")["modes"]
    assert all(row[key] > 0 for row in modes for key in CALIBRATION)
    assert len({row["nll"] for row in modes}) == len(modes)
    plain = next(
        row for row in modes
        if (row["data"], row["noise"], row["statistics"]) == ("test", "off", "running")
    )  # fmt: skip
    for key in CALIBRATION:  # the batches differ, and with them how convolutions round
        assert plain[key] == pytest.approx(summary[f"test_{key}"], rel=1e-2)


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


def test_monte_carlo_bn_takes_full_batches_as_training_draws_them():
    from vshift.train.evaluate import _single_batches

    config = make_config(data={"name": "shapes", "train": 70, "test": 10, "batch_size": 32})
    context = TrainingContext(config, 3, load(config.data, "cpu"))
    batches = list(_single_batches(context, 5))  # an epoch has two full ones and a rest of six
    assert [len(images) for images in batches] == [32] * 5
    assert len({images.sum().item() for images in batches}) == 5
    again = list(_single_batches(context, 5))
    assert all(torch.equal(one, two) for one, two in zip(batches, again, strict=True))
    ghost = config.model_copy(update={"norm": config.norm.model_copy(update={"ghost": 8})})
    groups = list(_single_batches(TrainingContext(ghost, 3, load(config.data, "cpu")), 2))
    assert all(torch.equal(g, b[:8]) for g, b in zip(groups, batches, strict=False))
    few = make_config(data={"name": "shapes", "train": 20, "test": 10, "batch_size": 32})
    small = TrainingContext(few, 3, load(few.data, "cpu"))
    assert [len(images) for images in _single_batches(small, 2)] == [20, 20]


def test_monte_carlo_bn_without_bn_is_refused_before_training():
    from vshift.train.context import build_model

    config = make_config(norm={"kind": "none"}, measure={"monte_carlo_bn": 4})
    with pytest.raises(ConfigError, match=r"measure\.monte_carlo_bn: .* has no BN layer"):
        build_model(config, load(config.data, "cpu"), 0)


def test_layer_rows_explain_the_shift(run):
    last = [row for row in run.layers() if row["epoch"] == 2]
    for row in last:
        product = row["local_ratio"] * row["inherited_ratio"]
        assert row["total_ratio"] == pytest.approx(product)
        assert row["shift_ratio_se"] > 0
        if row["noise_before"]:
            assert row["predicted_exact"]
            assert row["local_ratio"] > 1.2
            assert row["predicted_ratio"] == pytest.approx(row["local_ratio"], rel=0.1)
            assert row["dcos2"] == pytest.approx(row["cos2"] * 9 * row["channels"], rel=0.6)
        else:
            assert row["local_ratio"] == 1
    assert all(row["local_ratio"] is None for row in run.layers() if row["epoch"] == 1)


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


def test_batches_are_random_samples_though_files_come_class_by_class():
    """In the order of the files every test batch would hold one class and its statistics."""
    from dataclasses import replace

    config = make_config()
    images = load(config.data, "cpu")
    order = images.test.labels.argsort()
    part = replace(images.test, images=images.test.images[order], labels=images.test.labels[order])
    context = TrainingContext(config, 0, replace(images, test=part))
    first = next(iter(context.plain(part)()))[1]
    assert len(first.unique()) == 10
    seen = torch.cat([labels for _, labels in context.plain(part)()])
    assert torch.equal(seen.sort().values, part.labels.sort().values)
    again = torch.cat([labels for _, labels in context.plain(part)()])
    assert torch.equal(seen, again)


def test_statistics_that_are_not_finite_become_rows_that_say_so(tmp_path):
    """As a run near divergence has them: its weights are finite, its activations are not."""
    from vshift.train.evaluate import mode_rows, mode_summary, recalibrations

    config = make_config(
        network={"name": "preresnet", "depth": 8, "noise": NOISE},
        recalibration={"methods": METHODS, "batches": 2},
        measure={"eval_batches": 2, "modes": True},
        epochs=1,
    )
    context = TrainingContext(config, 0, load(config.data, "cpu"))
    with torch.no_grad():
        next(m for m in context.model.modules() if isinstance(m, torch.nn.Conv2d)).weight.fill_(
            3e38
        )
    rows, states = recalibrations(context, config.recalibration)
    by_method = {row["method"]: row for row in rows}
    assert list(by_method) == METHODS
    for method in ("swap", "precise", "layerwise", "dropout_on"):
        assert by_method[method]["test_accuracy"] is by_method[method]["test_ece"] is None
        assert "has no finite statistics over" in by_method[method]["problem"]
        assert method not in states
    mode_summary(mode_rows(context, states))
    before = {"method": "none", "test_accuracy": 10.0, "test_loss": 2.3}
    assert "no finite statistics" in render(scores_table([before, *rows]), "table")


def test_a_run_whose_statistics_overflow_is_finished(tmp_path):
    from vshift.train import loop as module

    config = make_config(
        network={"name": "preresnet", "depth": 8, "noise": NOISE}, epochs=1,
        recalibration={"methods": ["precise", "swap"], "batches": 2},
    )  # fmt: skip
    folder, _ = prepare(tmp_path, config, 0)
    original = module.measure_layers

    def overflow(context, epoch, folder):
        rows = original(context, epoch, folder)
        with torch.no_grad():
            next(m for m in context.model.modules() if isinstance(m, torch.nn.Conv2d)).weight.fill_(
                3e38
            )
        return rows

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "measure_layers", overflow)
    with patch.context():
        status = train_in(folder, config, 0, load(config.data, "cpu"), Reporter(quiet=True))
    patch.undo()
    assert status == "done"
    rows = read(folder, "recalibration.json")["methods"]
    assert [row["method"] for row in rows] == ["none", "precise", "swap"]
    assert "no finite statistics" in rows[1]["problem"]
    summary = read(folder, "summary.json")
    assert summary["test_accuracy_precise"] is None
    assert summary["test_error_recalibrated"] is None
    folder.close()


def test_a_run_of_version_0_1_is_recalibrated(tmp_path):
    """Its config, checkpoint and results were written by the code before the names of now."""
    old = Path(__file__).parents[1] / "runs" / "old_run" / "seed-0"
    path = shutil.copytree(old, tmp_path / "seed-0")
    rows = {row["method"]: row for row in recalibrate_run(path, ["recalibration.methods=[swap]"])}
    summary = json.loads((old / "summary.json").read_text())
    assert rows["none"]["test_accuracy"] == summary["test_accuracy"]
    kept = json.loads((path / "recalibration.json").read_text())["methods"]
    assert {row["method"] for row in kept} == {"none", "swap", "precise", "mix", "monte_carlo"}
