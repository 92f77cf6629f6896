"""What is measured after the last epoch, and written into the summary."""

import pytest
import torch

from tests.configs import make_config
from tests.train.conftest import METHODS, NOISE, read
from vshift.cli.recalibrate import scores_table
from vshift.data import load
from vshift.runs import prepare
from vshift.tables import render
from vshift.train import loop
from vshift.train.context import TrainingContext
from vshift.train.final import mode_rows, mode_summary, recalibrations
from vshift.train.progress import Reporter
from vshift.train.run import train_in

CALIBRATION = ("nll", "brier", "ece")


def test_train_recalibrates_by_every_method_the_config_lists(measured_run):
    rows = {row["method"]: row for row in read(measured_run, "recalibration.json")["methods"]}
    assert list(rows) == ["none", *METHODS]
    assert rows["layerwise"]["shift_ratio_max"] < 1.05
    assert rows["dropout_on"]["shift_ratio_max"] > 1.2
    assert {method: row.get("own") for method, row in rows.items()} == {
        "none": None, **dict.fromkeys(METHODS, 0.5), "batch": 1.0
    }  # fmt: skip
    assert "batch_weight" not in rows["mix"]
    summary = read(measured_run, "summary.json")
    assert summary["test_accuracy_precise"] == rows["precise"]["test_accuracy"]
    assert summary["recalibration"] == "swap"
    assert summary["test_error_recalibrated"] == pytest.approx(100 - summary["test_accuracy_swap"])


def test_mode_matrix_covers_both_data_parts_and_every_state(measured_run):
    rows = read(measured_run, "modes.json")["modes"]
    found = {(row["data"], row["noise"], row["statistics"]) for row in rows}
    states = ("batch", "running", "swap", "precise", "layerwise", "dropout_on")
    assert found == {(d, n, s) for d in ("train", "test") for n in ("on", "off") for s in states}
    by_key = {(row["data"], row["noise"], row["statistics"]): row for row in rows}
    summary = read(measured_run, "summary.json")
    plain = by_key["test", "off", "running"]["accuracy"]
    assert plain == pytest.approx(summary["test_accuracy"], abs=1.01)  # other batch sizes round
    precise = by_key["test", "off", "precise"]["accuracy"]
    assert summary["test_recovered_precise"] == pytest.approx(precise - plain)
    noise = precise - by_key["test", "on", "running"]["accuracy"]
    assert summary["test_noise_cost"] == pytest.approx(noise)
    assert summary["monte_carlo_passes"] == 4
    assert summary["monte_carlo_spread"] > 0


def test_calibration_stands_beside_every_accuracy(measured_run):
    summary, last = read(measured_run, "summary.json"), measured_run.metrics()[-1]
    rows = {row["method"]: row for row in read(measured_run, "recalibration.json")["methods"]}
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
    modes = read(measured_run, "modes.json")["modes"]
    assert all(row[key] > 0 for row in modes for key in CALIBRATION)
    assert len({row["nll"] for row in modes}) == len(modes)
    plain = next(
        row for row in modes
        if (row["data"], row["noise"], row["statistics"]) == ("test", "off", "running")
    )  # fmt: skip
    for key in CALIBRATION:  # the batches differ, and with them how convolutions round
        assert plain[key] == pytest.approx(summary[f"test_{key}"], rel=1e-2)


def test_statistics_that_are_not_finite_become_rows_that_say_so(tmp_path):
    """As a run near divergence has them: its weights are finite, its activations are not."""
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
    config = make_config(
        network={"name": "preresnet", "depth": 8, "noise": NOISE}, epochs=1,
        recalibration={"methods": ["precise", "swap"], "batches": 2},
    )  # fmt: skip
    folder, _ = prepare(tmp_path, config, 0)
    original = loop.measure_layers

    def overflow(context, epoch, folder):
        rows = original(context, epoch, folder)
        with torch.no_grad():
            next(m for m in context.model.modules() if isinstance(m, torch.nn.Conv2d)).weight.fill_(
                3e38
            )
        return rows

    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "measure_layers", overflow)
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
