"""Losses and scores by hand, in float64."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.configs import make_config
from vshift.data import load
from vshift.errors import ConfigError
from vshift.train.objective import MetricAccumulator, classification, make_objective, regression

ANGLE = {"name": "shapes", "target": "angle", "train": 60, "test": 20, "batch_size": 16}


def objective_of(**sections):
    config = make_config(**sections)
    return make_objective(config, load(config.data))


def logits(rows=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(rows, 10, generator=generator)
    return output, torch.randint(10, (rows,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothed_labels(smoothing):
    """Szegedy et al. 2016, section 7: q = (1 − ε)·[k = y] + ε/K."""
    output, labels = logits()
    loss = {"name": "cross_entropy", "label_smoothing": smoothing}
    found, correct = objective_of(loss=loss)(output, output, labels)
    x, y = output.double().numpy(), labels.numpy()
    logs = x - np.log(np.exp(x).sum(1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(10)[y] + smoothing / 10
    assert float(found) == pytest.approx(-(wanted * logs).sum(1).mean(), rel=1e-5)
    assert int(correct) == (x.argmax(1) == y).sum()


def test_a_mixture_is_answered_right_to_its_share():
    output = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.25, 0.0, 0.75], [0.0, 0.0, 1.0]])
    _, correct = objective_of()(output, output, targets)
    assert float(correct) == pytest.approx(0.7 + 0.0 + 1.0)


def test_the_squared_error_of_logits_is_against_one_hot_labels():
    output, labels = logits()
    found, correct = objective_of(loss={"name": "mse"})(output, output, labels)
    wanted = ((output.double().numpy() - np.eye(10)[labels.numpy()]) ** 2).mean()
    assert float(found) == pytest.approx(wanted, rel=1e-6)
    assert int(correct) == int((output.argmax(1) == labels).sum())


def test_rmse_and_r2_are_those_of_all_images_together():
    """In batches of unequal size, for two numbers of other units and means."""
    random = np.random.default_rng(0)
    truth = random.normal([3.0, -1.0], [2.0, 0.1], (50, 2))
    answers = truth + random.normal(0, [1.0, 0.02], (50, 2))
    std = torch.tensor([2.0, 0.1], dtype=torch.float64)
    scaled = [torch.from_numpy((values - [3.0, -1.0]) / std.numpy()) for values in (answers, truth)]
    metrics = MetricAccumulator("cpu", std)
    objective = regression(torch.nn.functional.mse_loss)
    for part in (slice(0, 33), slice(33, 50)):
        output, target = (values[part].float() for values in scaled)
        metrics.add(*objective(output, output, target), len(output))
    found = metrics.compute_and_reset()
    assert found.rmse == pytest.approx(math.sqrt(((answers - truth) ** 2).mean()), rel=1e-5)
    residual, total = ((answers - truth) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
    assert found.r2 == pytest.approx((1 - residual / total).mean(), rel=1e-5)
    assert found.loss == pytest.approx(((scaled[0] - scaled[1]) ** 2).mean().item(), rel=1e-5)
    assert (found.accuracy, found.count) == (None, 50)
    assert list(found.columns("test_{}")) == ["test_loss", "test_accuracy", "test_rmse", "test_r2"]
    assert metrics.compute_and_reset().count == 0


def test_targets_that_are_all_the_same_have_no_r2():
    metrics = MetricAccumulator("cpu", torch.ones(1, dtype=torch.float64))
    objective = regression(torch.nn.functional.mse_loss)
    metrics.add(*objective(torch.ones(4, 1), torch.ones(4), torch.zeros(4, 1)), 4)
    found = metrics.compute_and_reset()
    assert (found.rmse, found.r2) == (1.0, None)


def test_classes_have_neither_rmse_nor_r2():
    output, labels = logits()
    metrics = MetricAccumulator("cpu")
    objective = classification(torch.nn.functional.cross_entropy)
    metrics.add(*objective(output, output, labels), len(labels))
    assert list(metrics.compute_and_reset().columns()) == ["loss", "accuracy"]


def test_cross_entropy_of_numbers_is_refused():
    loss = {"name": "cross_entropy"}
    with pytest.raises(ValidationError, match="is for classes, and an angle is a number"):
        make_config(data=ANGLE, loss=loss)
    with pytest.raises(ValidationError, match="is for classes, and an autoencoder gives pixels"):
        make_config(network={"name": "autoencoder"}, loss=loss)
    classes = make_config(loss=loss)
    with pytest.raises(ConfigError, match=r"loss\.name: cross_entropy is for classes.*\{name: mse"):
        make_objective(classes, load(make_config(data=ANGLE).data))


LOSSES = """
import torch
from torch import nn

def huber(output, targets, delta=1.0):
    return nn.functional.huber_loss(output, targets, delta=delta)

def per_image(output, targets):
    return nn.functional.cross_entropy(output, targets, reduction="none")

class Weighted(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
    def forward(self, output, targets):
        return nn.functional.cross_entropy(output, targets, self.weight)

def a_number(output, targets):
    return 1.0
def cut(output, targets):
    return output.detach().mean()
def shaped(output, targets):
    return output
def broken(output, targets):
    return output @ targets
"""


@pytest.fixture
def losses(tmp_path):
    (tmp_path / "losses.py").write_text(LOSSES)
    return lambda name, **args: {"name": f"{tmp_path}/losses.py:{name}", "args": args}


def test_a_loss_of_ones_own(losses):
    output, labels = logits()
    F = torch.nn.functional
    found, correct = objective_of(loss=losses("per_image"))(output, output, labels)
    torch.testing.assert_close(found, F.cross_entropy(output, labels))
    assert int(correct) == int((output.argmax(1) == labels).sum())
    weight = [float(k) for k in range(10)]
    found, _ = objective_of(loss=losses("Weighted", weight=weight))(output, output, labels)
    torch.testing.assert_close(found, F.cross_entropy(output, labels, torch.tensor(weight)))
    numbers = torch.randn(40, 1), torch.randn(40, 1)
    found, _ = objective_of(data=ANGLE, loss=losses("huber", delta=0.5))(numbers[0], *numbers)
    torch.testing.assert_close(found, F.huber_loss(*numbers, delta=0.5))
    smooth = {"name": "torch.nn:SmoothL1Loss", "args": {"beta": 0.1}}
    found, _ = objective_of(data=ANGLE, loss=smooth)(numbers[0], *numbers)
    torch.testing.assert_close(found, F.smooth_l1_loss(*numbers, beta=0.1))


def test_a_loss_of_ones_own_is_tried_with_mixtures_too(losses, tmp_path):
    """It gets classes in testing, and distributions in training."""
    (tmp_path / "only.py").write_text(
        "def classes(output, targets): return output[range(len(targets)), targets].mean()\n"
        "def mixtures(output, targets): return (output * targets).sum(1)\n"
    )
    mixed = {"name": "shapes", "train": 60, "test": 20, "augment": {"mixup": 1.0}}
    with pytest.raises(ConfigError, match=r"targets \[2, 10\]: IndexError"):
        objective_of(data=mixed, loss={"name": f"{tmp_path}/only.py:classes"})
    with pytest.raises(ConfigError, match=r"targets \[2\]: RuntimeError"):
        objective_of(data=mixed, loss={"name": f"{tmp_path}/only.py:mixtures"})
    output, labels = logits()
    found, _ = objective_of(data=mixed, loss=losses("per_image"))(output, output, labels)
    assert float(found) > 0


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("a_number", {}, "gives a value of type float; it must give the mean loss as a tensor"),
        ("cut", {}, "does not depend on the output"),
        ("shaped", {}, r"gives a tensor \[2, 10\] of torch.float32"),
        ("broken", {}, r"of outputs \[2, 10\] and targets \[2\]: RuntimeError"),
        ("huber", {"dleta": 1.0}, "takes no 'dleta'; did you mean `delta`"),
        ("Weighted", {}, "needs 1 argument more: weight"),
    ],
)
def test_what_is_no_loss_is_refused(losses, name, args, words):
    with pytest.raises(ConfigError, match=words):
        objective_of(loss=losses(name, **args))
