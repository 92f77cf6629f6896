"""Numbers to predict: what is trained, scored, tabled and resumed where nothing is classified."""

import json

import numpy as np
import pytest
import torch

from tests.configs import make_config
from tests.factory import make_run
from tests.train.test_fast_steps import context_of, equal, trained
from tests.train.test_loop import NOISY, figures, run, same, weights
from vshift.cli.recalibrate import scores_table
from vshift.compare import compare
from vshift.compare.columns import to_table
from vshift.data import load, plain_stream
from vshift.data.shapes import angles
from vshift.networks.build import build
from vshift.report.page import render as render_page
from vshift.report.study import collect
from vshift.runs import find_runs
from vshift.shift.modes import noise_modules
from vshift.tables import render
from vshift.train.captured_step import CapturedStep
from vshift.train.loop import TrainStep
from vshift.train.monte_carlo import monte_carlo_rows
from vshift.train.recalibrate import open_run, recalibrate_run

ANGLE = {
    "name": "shapes", "target": "angle", "train": 200, "test": 60, "validation": 40,
    "batch_size": 64,
}  # fmt: skip
MEASURE = {"eval_batches": 2, "modes": True, "monte_carlo": 3, "monte_carlo_bn": 2}
SMALL = {**ANGLE, "train": 90, "test": 20, "validation": 0, "batch_size": 32}
MIXED = {**SMALL, "augment": {"mixup": 0.4, "cutmix": 1.0, "cutout": 8}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = make_config(data=ANGLE, network=NOISY, measure=MEASURE)
    folder, status = run(tmp_path_factory.mktemp("angle"), config)
    assert status == "done"
    return folder


def summary(folder):
    return json.loads((folder.path / "summary.json").read_text())


def test_rmse_and_r2_are_those_of_the_checkpoints_predictions_in_degrees(folder):
    config = make_config(data=ANGLE, network=NOISY)
    images = load(config.data)
    model = build(config, classes=1, channels=3, size=32, seed=5)
    model.load_state_dict(weights(folder))
    model.eval()
    ((pixels, _),) = plain_stream(images, images.test).plain()
    drawn = angles(0, "train", 250)[:, 0]
    shown = [i for i in range(250) if i % 10 >= 2][:160]  # 40 of the 200 are held out
    with torch.no_grad():
        answers = model(pixels)[:, 0].double().numpy() * drawn[shown].std() + drawn[shown].mean()
    truth = angles(0, "test", 80)[[i for i in range(80) if i % 10 >= 2][:60], 0].astype(float)
    error = ((answers - truth) ** 2).mean()
    found = summary(folder)
    assert found["test_rmse"] == pytest.approx(error**0.5, rel=1e-4)
    assert found["test_r2"] == pytest.approx(1 - error / truth.var(), rel=1e-3, abs=1e-4)
    assert found["test_accuracy"] is found["test_error"] is None
    assert found["test_r2_precise"] is not None
    assert found["test_rmse_recalibrated"] > 0
    for key in ("train_rmse", "validation_r2", "train_r2_eval_mode", "train_rmse_train_mode"):
        assert np.isfinite(found[key])


def test_rows_have_the_scores_and_null_accuracies(folder):
    rows = folder.metrics()
    assert [row["test_accuracy"] for row in rows] == [None, None]
    assert rows[-1]["test_rmse"] == summary(folder)["test_rmse"]
    assert {"train_rmse", "train_r2", "validation_rmse", "validation_r2"} <= set(rows[0])
    modes = json.loads((folder.path / "modes.json").read_text())["modes"]
    by_mode = {(row["data"], row["noise"], row["statistics"]): row for row in modes}
    plain = by_mode["test", "off", "running"]
    assert plain["rmse"] == pytest.approx(summary(folder)["test_rmse"], rel=1e-4)
    stale = by_mode["test", "off", "precise"]["r2"] - plain["r2"]
    assert summary(folder)["test_recovered_precise"] == pytest.approx(100 * stale)


def test_monte_carlo_averages_the_numbers(folder):
    """Without noise every pass is the same: its RMSE is that of the test, and its spread 0."""
    found = summary(folder)
    for method in ("monte_carlo", "monte_carlo_bn"):
        assert found[f"{method}_spread"] > 0
        assert found[f"{method}_rmse_sd"] > 0
        # The mean of several answers is at least as near as they are on average (Jensen).
        assert found[f"{method}_rmse"] <= found[f"{method}_pass_rmse"] + found[f"{method}_rmse_sd"]
    assert found["monte_carlo_passes"] == 3
    context = open_run(folder.path, ["measure.monte_carlo=2"])
    for module in noise_modules(context.model).values():
        module.variance = 0.0
    quiet, _ = monte_carlo_rows(context)
    assert quiet["monte_carlo_spread"] == pytest.approx(0, abs=1e-6)
    assert quiet["test_rmse"] == pytest.approx(found["test_rmse"], rel=1e-4)
    assert quiet["monte_carlo_pass_rmse"] == pytest.approx(found["test_rmse"], rel=1e-4)


def test_the_report_shows_the_rmse(folder):
    page = render_page(collect(find_runs([folder.path.parent])), "runs", "")
    assert "test RMSE" in page
    assert r"R\u00b2 (%)" in page  # the title of the mode matrix, in JSON


def test_differences_are_of_the_rmse_where_there_is_no_error(tmp_path):
    for name, rates in (("plain", (8.0, 8.5)), ("noisy", (9.0, 9.7))):
        for seed, rmse in enumerate(rates):
            path = make_run(tmp_path, name, seed)
            (path / "summary.json").write_text(json.dumps({"test_rmse": rmse, "test_loss": 1.0}))
    comparison = compare(find_runs([tmp_path]), "plain")
    assert comparison.metric == "test_rmse"
    row = next(row for row in comparison.rows if row["name"] == "noisy")
    assert row["difference"] == pytest.approx(9.35 - 8.25)
    assert "Difference: test RMSE minus that of plain" in comparison.about_difference


def test_tables_show_the_rmse(folder):
    comparison = compare(find_runs([folder.path.parent]))
    assert comparison.rows[0]["test_error_mean"] is None
    assert comparison.rows[0]["test_rmse_mean"] == summary(folder)["test_rmse"]
    heads = [column.head.replace("\n", " ") for column in to_table(comparison).columns]
    assert {"test RMSE", "test R²", "RMSE after recalibration"} <= set(heads)
    assert "test error %" not in heads


def test_recalibrating_shows_the_rmse(folder):
    rows = recalibrate_run(folder.path, ["recalibration.methods=[precise, batch]"])
    text = render(scores_table(rows), "table")
    assert f"{rows[0]['test_rmse']:.4f}" in text


def test_mirrored_figures_are_turned_the_other_way():
    images = load(make_config(data=ANGLE).data)
    train, std = images.train, images.target_std
    drawn = torch.from_numpy(angles(0, "train", 250)[[i for i in range(250) if i % 10 >= 2][:160]])
    mean = drawn.double().mean()
    torch.testing.assert_close(
        train.labels.double() * std + mean, drawn.double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        train.mirrored.double() * std + mean, -drawn.double(), atol=1e-5, rtol=0
    )
    context = context_of(data={**ANGLE, "augment": {"crop": 0}})
    plan = context.stream.plan(0)
    labels = torch.cat([labels for _, labels in context.stream.epoch(0)])
    wanted = torch.where(plan.flips[:, None], train.mirrored[plan.order], train.labels[plan.order])
    assert labels.equal(wanted)


@pytest.mark.parametrize("data", [MIXED, {**MIXED, "target": "class"}], ids=["angle", "class"])
def test_the_captured_step_is_the_eager_one_with_mixtures_too(recorded_graphs, data):
    results = []
    for make in (lambda context: CapturedStep(context, compile=False), TrainStep):
        results.append(trained(make(context_of(data=data))))
    (scores, _, own), (eager_scores, _, eager) = results
    assert scores == eager_scores
    equal(eager, own)


def test_resuming_with_mixtures_equals_never_having_stopped(tmp_path, monkeypatch):
    config = make_config(data=MIXED, network=NOISY, checkpoint={"minutes": 1e-9})
    whole, _ = run(tmp_path / "a", config)
    original, calls = TrainStep.__call__, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 5:  # the second step of epoch 2
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", config)
    monkeypatch.undo()
    parts, _ = run(tmp_path / "b", config)
    assert same(weights(whole), weights(parts))
    assert figures(whole) == figures(parts)
    assert summary(whole) == summary(parts)
