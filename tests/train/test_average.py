"""Averages of the weights against PyTorch's, and their BN statistics."""

import json
from typing import get_args

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.configs import make_config
from tests.train.test_fast_steps import LEFT_OVER, context_of, equal
from tests.train.test_loop import run, weights
from vshift.config.average import EMA, SWA, Buffers
from vshift.runs.schema import AVERAGE_BUFFERS, SUMMARY_COLUMNS
from vshift.shift.modes import load_bn_state
from vshift.train import scores
from vshift.train.average import shares
from vshift.train.captured_step import CapturedStep
from vshift.train.context import derive_seed
from vshift.train.fast_steps import make_train_step
from vshift.train.final import _ESTIMATED, _estimated
from vshift.train.loop import TrainStep

WORDS = ["own", "copied", "averaged", "precise"]
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_bn"}
NET = {"name": "mlp", "widths": [16, 16], "noise": NOISE}
AVERAGES = [
    {"kind": "ema", "decay": 0.8},
    {"kind": "ema", "decay": 0.8, "every": 3},
    {"kind": "swa", "start": 0.5},
    {"kind": "swa", "start": 0.0, "every": 2},
]


def test_every_choice_of_buffers_has_its_columns():
    assert get_args(Buffers) == AVERAGE_BUFFERS
    assert {f"test_error_average_{word}" for word in WORDS} <= SUMMARY_COLUMNS.keys()


def test_shares():
    assert shares(EMA(kind="ema", decay=0.75), 4, 2) == [1, 0.25, 0.25, 0.25]
    assert shares(EMA(kind="ema", decay=0.75, every=3), 8, 4) == [0, 1, 0, 0, 0.25, 0, 0, 0.25]
    assert shares(SWA(kind="swa"), 8, 2) == [0, 0, 0, 0, 0, 1, 0, 1 / 2]
    assert shares(SWA(kind="swa", start=0.9), 8, 4) == [0] * 7 + [1]
    assert shares(SWA(kind="swa", start=0.3, every=2), 10, 5) == [0] * 3 + [
        1, 0, 1 / 2, 0, 1 / 3, 0, 1 / 4,
    ]  # fmt: skip
    # The float 0.7 · 10 is above 7, and step 7 belongs to the last 30 %.
    assert shares(SWA(kind="swa", start=0.7, every=1), 10, 5)[5:7] == [0, 1]


def epochs(step, count=2):
    """Train; yields after every step."""
    for epoch in range(count):
        torch.manual_seed(derive_seed(0, epoch, "noise"))
        rates = [0.01 * (1 + i) for i in range(step.context.stream.steps)]
        for _ in step.epoch(derive_seed(0, epoch, "data"), rates):
            yield


def averaged_by_pytorch(average, step, buffers):
    """Train with `torch.optim.swa_utils.AveragedModel` beside our own average."""
    context = step.context
    decay = average.get("decay")
    multi = get_ema_multi_avg_fn(decay) if decay else None
    theirs = AveragedModel(context.model, multi_avg_fn=multi, use_buffers=buffers)
    due = shares(context.config.average, 2 * context.stream.steps, context.stream.steps)
    for share, _ in zip(due, epochs(step), strict=True):
        if share:
            theirs.update_parameters(context.model)
    return theirs.module


@pytest.mark.parametrize("buffers", [True, False])
@pytest.mark.parametrize("average", AVERAGES, ids=str)
def test_an_average_is_that_of_pytorch(average, buffers):
    """With buffers averaged, and with those of the trained network."""
    step = TrainStep(context_of(network=NET, average=average))
    theirs = averaged_by_pytorch(average, step, buffers)
    model = step.context.model
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with step.context.average.applied(buffers=buffers):
        ours = {k: v.clone() for k, v in model.state_dict().items() if "num_batches" not in k}
    kept = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    torch.testing.assert_close(ours, kept, rtol=1e-5, atol=1e-6)
    equal(own, model.state_dict())  # it is put back
    assert not torch.equal(ours["layer1.fc1.weight"], own["layer1.fc1.weight"])


@pytest.mark.parametrize("average", AVERAGES[1:3], ids=str)
def test_a_captured_step_averages_as_the_eager_one_bit_for_bit(recorded_graphs, average):
    found = []
    for make in (lambda context: CapturedStep(context, compile=False), TrainStep):
        step = make(context_of(network=NET, data=LEFT_OVER, average=average))
        for _ in epochs(step):
            pass
        found.append(step.context.average.state_dict())
    equal(found[1]["model"], found[0]["model"])
    assert int(found[0]["step"]) == 20


def test_capturing_restores_the_average():
    context = context_of(network=NET, average={"kind": "ema"})
    step = CapturedStep(context, compile=False)
    step._send_plan(0, [0.1] * 5, 0)
    with step._restored():
        step.advance(64)
        assert all(tensor.any() for tensor in context.average.tensors())
    assert not any(tensor.any() for tensor in context.average.tensors())


@pytest.mark.parametrize("step", ["eager", "fused"])
def test_an_average_changes_no_bit_of_the_training(tmp_path, step):
    """Nor of what else is measured."""
    hardware = {"device": "cpu", "precision": "float32", "threads": 1, "step": step}
    plain, _ = run(tmp_path / "a", make_config(network=NET, hardware=hardware))
    average = {"kind": "ema", "decay": 0.8, "buffers": WORDS}
    averaged, _ = run(tmp_path / "b", make_config(network=NET, hardware=hardware, average=average))
    equal(weights(plain), weights(averaged))
    assert plain.layers() == averaged.layers()
    one, other = (json.loads((f.path / "summary.json").read_text()) for f in (plain, averaged))
    assert one == {key: value for key, value in other.items() if "average" not in key}
    assert {f"test_accuracy_average_{word}" for word in WORDS} < other.keys()


def test_the_fused_steps_average_is_the_eager_ones_within_rounding():
    found = []
    for kind in ("fused", "eager"):
        network = {"name": "mlp", "widths": [16, 16]}
        context = context_of(network=network, average=AVERAGES[0], data=LEFT_OVER)
        step = make_train_step(kind, context, print)
        assert step.name == kind
        for _ in epochs(step, 1):
            pass
        found.append(context.average.state_dict()["model"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_frozen_weights_are_not_averaged():
    context = context_of(average={"kind": "swa"}, optimizer={"name": "sgd", "train": "norm"})
    names = set(context.average.state_dict()["model"])
    trained = {name for name, p in context.model.named_parameters() if p.requires_grad}
    assert trained < names
    assert all("running" in name for name in names - trained)


def test_own_statistics_are_those_of_pytorchs_update_bn():
    """The simple average over batches, in train mode with noise on."""
    average = {"kind": "ema", "decay": 0.8}
    how = {"estimator": "average", "batches": 5}
    context = context_of(network=NET, average=average, recalibration=how, data=LEFT_OVER)
    theirs = averaged_by_pytorch(average, TrainStep(context), buffers=True)
    with context.average.applied(buffers=False):
        ours = _estimated(context, context.config.recalibration, _ESTIMATED["own"])
    torch.manual_seed(derive_seed(0, context.config.epochs, "recalibration noise"))
    batches = [images for images, _ in context.augmented(context.config.epochs, 5)()]
    update_bn(batches, theirs)
    state = theirs.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)


def test_the_summary_holds_each_words_scores(tmp_path):
    """By hand, from the checkpoint: its average in a network, with the word's statistics."""
    average = {"kind": "ema", "decay": 0.8, "buffers": WORDS}
    hardware = {"device": "cpu", "precision": "float32", "threads": 1, "step": "eager"}
    config = make_config(network=NET, average=average, hardware=hardware)
    folder, _ = run(tmp_path, config)
    summary = json.loads((folder.path / "summary.json").read_text())
    state = folder.load_checkpoint()
    context = context_of(network=NET, average=average)
    for word in WORDS:
        context.model.load_state_dict(state["model"])
        kept = state["average"]["model"]
        if word != "averaged":
            kept = {name: tensor for name, tensor in kept.items() if "running" not in name}
        context.model.load_state_dict(kept, strict=False)
        if word in _ESTIMATED:
            how = context.config.recalibration
            load_bn_state(context.model, _estimated(context, how, _ESTIMATED[word]))
        found = scores.test_scores(context)
        assert summary[f"test_loss_average_{word}"] == pytest.approx(found["test_loss"])
        assert summary[f"test_error_average_{word}"] == 100 - found["test_accuracy"]
    written = {key for key in SUMMARY_COLUMNS if "average" in key and "rmse" not in key}
    assert written <= summary.keys()
    # Noise in the averaged network's own passes, and none in precise ones.
    assert summary["shift_ratio_mean_average_own"] > 1.3
    assert summary["shift_ratio_mean_average_precise"] < 1.1
    # Where it starts from makes no difference to `precise`.
    assert len({summary[f"test_error_recalibrated_average_{word}"] for word in WORDS}) == 1


def test_a_network_without_bn_has_an_average_with_nothing_to_choose(tmp_path):
    average = {"kind": "swa", "start": 0.0, "buffers": WORDS}
    norm = {"kind": "group", "groups": 4}
    folder, status = run(tmp_path, make_config(epochs=1, norm=norm, average=average))
    assert status == "done"
    summary = json.loads((folder.path / "summary.json").read_text())
    assert len({summary[f"test_loss_average_{word}"] for word in WORDS}) == 1
    # One epoch, whose last step alone is taken.
    assert summary["test_loss_average_own"] == summary["test_loss"]
    assert summary["shift_ratio_mean_average_own"] is None
