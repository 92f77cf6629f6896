"""What changes within a run (frozen BN, batch renorm's limits, noise of a part of the run): every
step, resumed or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.configs import make_config
from tests.soak.harness import differences
from tests.train.test_checkpointer import attempt
from tests.train.test_fast_steps import context_of, equal
from vshift.data import load
from vshift.errors import ConfigError
from vshift.shift.modes import modes
from vshift.train.captured_step import CapturedStep
from vshift.train.compiled_step import CannotCompile
from vshift.train.context import TrainingContext, build_model, derive_seed
from vshift.train.loop import TrainStep
from vshift.train.recalibrate import open_run, recalibrate_run

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_bn"}
MLP = {"name": "mlp", "widths": [16, 16]}
RENORM = {"kind": "renorm", "plain_steps": 3, "rmax_steps": 12, "dmax_steps": 8, "momentum": 0.2}
ARMS = {
    "frozen": {"norm": {"kind": "batch", "freeze_after": 2}},
    "renorm": {"norm": RENORM},
    "early noise": {"network": {**MLP, "noise": {**NOISE, "until": 0.67, "over_depth": "linear"}}},
    "late noise": {"network": {**MLP, "noise": {**NOISE, "from": 0.67}}},
}
STEPS = 5


def config_of(arm, step="auto"):
    return make_config(
        **{
            "data": {"name": "shapes", "train": 100, "test": 20, "batch_size": 20},
            "network": {**MLP, "noise": NOISE},
            "measure": {"eval_batches": 2, "eval_epochs": "all", "modes": True, "monte_carlo": 2},
            "recalibration": {"methods": ["precise", "dropout_on"], "batches": 2},
            "hardware": {"device": "cpu", "precision": "float32", "threads": 1, "step": step},
            "epochs": 3,
            **ARMS[arm],
        }
    )


@pytest.mark.parametrize("arm", ARMS)
def test_stopped_before_at_and_after_the_change_and_resumed(tmp_path, arm):
    config = config_of(arm)
    whole, status, _ = attempt(tmp_path / "whole", config)
    assert status == "done"
    for done in (4, 2 * STEPS, 2 * STEPS + 2):
        runs = tmp_path / str(done)
        _, status, _ = attempt(runs, config, steps=done)
        assert status == "interrupted"
        folder, status, _ = attempt(runs, config)
        assert status == "done"
        assert differences(whole.path, folder.path) == []


def trained(step, epochs=3):
    """Scores of every epoch, and the weights, with changes between epochs as in the loop."""
    context, scores = step.context, []
    for epoch in range(1, epochs + 1):
        if context.enter_epoch(epoch):
            step.forget()
        torch.manual_seed(derive_seed(0, epoch, "noise"))
        list(step.epoch(derive_seed(0, epoch, "data"), [0.05] * context.stream.steps))
        scores.append(context.metrics.compute_and_reset())
    return scores, context.model.state_dict()


@pytest.mark.parametrize("arm", ARMS)
def test_a_captured_step_is_the_eager_one_over_the_change(recorded_graphs, monkeypatch, arm):
    """A graph replays what was captured: before the change, and anew after it."""
    sections = config_of(arm).model_dump(exclude={"name"})
    reference = trained(TrainStep(context_of(**sections)))
    step = CapturedStep(context_of(**sections), compile=False)
    made, capture = [], step._capture
    monkeypatch.setattr(step, "_capture", lambda *key: made.append(key) or capture(*key))
    scores, weights = trained(step)
    assert scores == reference[0]
    equal(reference[1], weights)
    assert made == [(1, 20)] * (1 if arm == "renorm" else 2)


def test_steps_that_can_no_longer_be_captured_run_without(monkeypatch):
    """The same steps, and one line that says so."""
    sections = config_of("frozen").model_dump(exclude={"name"})
    reference = trained(TrainStep(context_of(**sections)))
    context, said = context_of(**sections), []
    context.say = said.append
    step = CapturedStep(context, compile=False)

    def refused(*key):
        raise CannotCompile("no memory")

    monkeypatch.setattr(step, "_capture", refused)
    scores, weights = trained(step)
    assert scores == reference[0]
    equal(reference[1], weights)
    assert set(said) == {"no captured step from here on: no memory; using a slower one"}


def test_frozen_epochs_move_no_running_statistics_and_log_the_batches(tmp_path):
    folder, _, _ = attempt(tmp_path, config_of("frozen"))
    rows = folder.layers()
    by_epoch = {(row["epoch"], row["layer"]): row for row in rows}
    for layer in {row["layer"] for row in rows}:
        first, second, third = (by_epoch[epoch, layer] for epoch in (1, 2, 3))
        assert first["running_variance"] != second["running_variance"]
        assert second["running_variance"] == third["running_variance"]
        assert second["train_variance"] != third["train_variance"]  # the weights still learn
        assert third["total_ratio"] == pytest.approx(
            third["local_ratio"] * third["inherited_ratio"], rel=1e-9
        )


@pytest.mark.parametrize("arm", ARMS)
def test_a_finished_run_is_opened_in_the_state_of_its_last_epoch(tmp_path, arm):
    folder, _, _ = attempt(tmp_path, config_of(arm, step="eager"))
    before = folder.modes()
    recalibrate_run(folder.path, ["measure.modes=true"])
    assert folder.modes() == before
    model = open_run(folder.path).model
    assert model.layer1.bn1.frozen == (arm == "frozen")
    assert model.layer1.noise1.active == (arm != "early noise")


def test_ratios_and_predictions_are_of_the_noise_of_their_epoch(tmp_path):
    folder, _, _ = attempt(tmp_path, config_of("late noise"))
    for row in folder.layers():
        ratios = [row["local_ratio"], row["predicted_ratio"]]
        assert row["noise_before"]
        assert (min(ratios) > 1.2) if row["epoch"] == 3 else (ratios == [1, 1])
    modes = {(row["data"], row["noise"], row["statistics"]): row for row in folder.modes()}
    early, _, _ = attempt(tmp_path / "early", config_of("early noise"))
    for (data, noise, statistics), row in modes.items():
        other = modes[data, "off" if noise == "on" else "on", statistics]
        assert row["loss"] != other["loss"]
    for row in early.modes():  # its noise ended before the last epoch
        (other,) = [one for one in early.modes() if {**one, "noise": ""} == {**row, "noise": ""}
                    and one["noise"] != row["noise"]]  # fmt: skip
        assert other["loss"] == row["loss"]


@pytest.mark.parametrize("arm", ["frozen", "renorm"])
def test_batch_mode_is_the_batch_and_training_mode_what_training_does(arm):
    context = context_of(**config_of(arm).model_dump(exclude={"name"}))
    trained(TrainStep(context))
    model, layer = context.model, context.model.layer1.bn1
    x = torch.randn(20, 16) * 2 + 1
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = nn.BatchNorm1d(16)
    plain.load_state_dict(layer.state_dict())
    with modes(model, noise=False, norm="batch"):
        torch.testing.assert_close(layer(x), plain(x))
    with modes(model, noise=False, norm="training"):
        found = layer(x)
    equal(state, model.state_dict())
    assert (layer.training, layer.evaluate) == (True, "running")
    assert torch.equal(found, layer.train()(x))
    assert not torch.allclose(found, plain(x), atol=1e-2)


def test_a_run_within_renorms_plain_steps_is_refused():
    config = make_config(norm={"kind": "renorm"}, epochs=20)
    images = load(config.data, torch.device("cpu"))
    with pytest.raises(
        ConfigError,
        match=r"norm\.plain_steps: a run of 100 steps ends before batch renorm begins, after 5,000 "
        r".*\{plain_steps: 10, dmax_steps: 50, rmax_steps: 80\}",
    ):
        build_model(config, images, 0)


def test_entering_an_epoch_says_whether_something_changed():
    context = TrainingContext(config_of("frozen"), 0, load(config_of("frozen").data, "cpu"))
    assert [context.enter_epoch(epoch) for epoch in (1, 2, 3, 3, 1)] == [False, False, True,
                                                                       False, True]  # fmt: skip
