"""The one network that classifies nothing: what it learns, what is logged, what cannot be asked."""

import json

import pytest
import torch
from pydantic import ValidationError

from tests.configs import make_config
from tests.train.test_loop import run, weights
from vshift.cli.recalibrate import scores_table
from vshift.compare import compare
from vshift.data import load, plain_stream
from vshift.networks.build import build
from vshift.runs import find_runs
from vshift.tables import render
from vshift.train.recalibrate import recalibrate_run

NETWORK = {"name": "autoencoder", "widths": [24, 12]}


def summary(folder):
    return json.loads((folder.path / "summary.json").read_text())


def test_its_output_has_the_images_values():
    model = build(make_config(network=NETWORK), classes=10, channels=3, size=32, seed=0)
    assert model(torch.zeros(4, 3, 32, 32)).shape == (4, 3 * 32 * 32)
    words = [name for name, _ in model.named_modules() if name.count(".") == 1]
    assert words[1:4] == ["layer1.fc1", "layer1.bn1", "layer1.sigmoid1"]


def test_its_loss_is_the_error_against_the_images_as_it_gets_them(tmp_path):
    """By hand, from the checkpoint."""
    config = make_config(
        network=NETWORK, epochs=3, optimizer={"name": "sgd", "learning_rate": 20.0}
    )
    folder, status = run(tmp_path, config)
    assert status == "done"
    rows = folder.metrics()
    assert [row["test_accuracy"] for row in rows] == [None] * 3
    assert [row["train_accuracy"] for row in rows] == [None] * 3
    losses = [row["train_loss"] for row in rows]
    assert losses[0] > losses[1] > losses[2]

    model = build(config, classes=10, channels=3, size=32, seed=5)
    model.load_state_dict(weights(folder))
    model.eval()
    images = load(config.data, "cpu")
    ((pixels, _),) = plain_stream(images, images.test).plain()
    with torch.no_grad():
        errors = (model(pixels) - pixels.flatten(1)) ** 2
        code = model[:-1](pixels)
    found = summary(folder)
    assert found["test_loss"] == pytest.approx(errors.double().mean().item(), rel=1e-5)
    assert found["code_mean_activity"] == pytest.approx(code.mean().item(), rel=1e-5)
    assert found["code_share_above_half"] == pytest.approx((code > 0.5).double().mean().item())
    for key in ("test_accuracy", "test_error", "test_error_recalibrated", "test_nll", "test_brier",
                "test_ece", "test_nll_precise"):  # fmt: skip
        assert found[key] is None
    assert found["test_loss_recalibrated"] > 0
    assert found["shift_ratio_mean"] >= 1


def test_a_shift_of_minus_3_5_makes_the_code_sparse(tmp_path):
    activity = []
    for shift in (0.0, -3.5):
        norm = {"kind": "batch", "shift_init": shift}
        folder, _ = run(tmp_path / str(shift), make_config(network=NETWORK, norm=norm, epochs=1))
        activity.append(summary(folder)["code_mean_activity"])
    assert activity[0] == pytest.approx(0.5, abs=0.02)
    assert activity[1] < 0.1


def test_tables_show_its_loss(tmp_path):
    for seed in (0, 1):
        run(tmp_path, make_config(network=NETWORK, epochs=1), seed=seed)
    comparison = compare(find_runs([tmp_path]))
    (row,) = comparison.rows
    assert (row["n"], row["left_out"], comparison.notes) == (2, 0, [])
    assert row["test_error_mean"] is None
    assert row["test_loss_sd"] > 0


def test_recalibrating_it_shows_its_loss(tmp_path):
    folder, _ = run(tmp_path, make_config(network=NETWORK, epochs=1))
    rows = recalibrate_run(folder.path, ["recalibration.methods=[precise, batch, mix]"])
    text = render(scores_table(rows), "table")
    assert "loss" in text.splitlines()[0]
    assert f"{rows[0]['test_loss']:.4f}" in text


@pytest.mark.parametrize(
    "measure", [{"modes": True}, {"monte_carlo": 5}, {"monte_carlo_bn": 5}], ids=str
)
def test_what_counts_right_answers_is_refused(measure):
    with pytest.raises(ValidationError, match="counts right answers, and an autoencoder gives"):
        make_config(network=NETWORK, measure=measure)
