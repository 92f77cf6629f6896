"""A stack of seeds against the same seeds one by one."""

import copy

import pytest
import torch

from benchmarks.cases import Case, make_config
from benchmarks.stack import Stack, StackedStream, seed_of, stacked_context
from benchmarks.training import random_images
from vshift.config.data import Augment
from vshift.data import Stream, train_stream
from vshift.networks.norm import BatchNorm
from vshift.shift.stats import TrainingLog
from vshift.train.captured_step import CapturedStep
from vshift.train.context import TrainingContext, build_model
from vshift.train.loop import TrainStep
from vshift.train.optimizer import make_optimizer

CPU = torch.device("cpu")
SEEDS, STEPS = 2, 3
# vmap has no rule of its own for some operations, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def parts(noise="none", network="preresnet-8"):
    config = make_config(
        Case(network, 8, noise), hardware={"device": "cpu", "precision": "float32"}
    )
    images = random_images(8, STEPS, CPU)
    models = [build_model(config, images, seed).train() for seed in range(SEEDS)]
    return config, images, models


def train(step, epochs=2):
    """The mean loss of each epoch."""
    losses = []
    for epoch in range(epochs):
        for _ in step.epoch(epoch, [0.01] * STEPS):
            pass
        losses.append(step.context.metrics.compute_and_reset().loss)
    return losses


class Double(Stream):
    """Images in float64: in float32 rounding alone makes gradients differ by some percent soon, as
    it turns ReLUs over."""

    def normalise(self, pixels):
        return super().normalise(pixels).double()


def doubles(images):
    return Double(images.train, images.mean, images.std, 8, Augment(crop=4, flip=True))


class SeedOf:
    """A stream whose epochs are those of one copy of a stack."""

    def __init__(self, stream, place):
        self.stream, self.place = stream, place

    def epoch(self, seed, skip=0):
        return self.stream.epoch(seed_of(seed, self.place), skip)


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        (TrainStep, "preresnet-8"),
        (TrainStep, "resnext-11-2-4"),
        (TrainStep, "densenet-10-4"),
        (CapturedStep, "preresnet-8"),
    ],
)
def test_a_stack_trains_each_seed_as_it_is_trained_alone(recorded_graphs, kind, network):
    config, images, models = parts(network=network)
    models = [model.double() for model in models]
    alone = copy.deepcopy(models)
    options = {"compile": False} if kind is CapturedStep else {}
    context = TrainingContext(config, 0, images)
    context.stream = doubles(images)
    context = stacked_context(context, copy.deepcopy(models))
    stack = context.model
    sums = train(kind(context, **options))
    seen = context.layer_log.compute_and_reset()
    losses = []
    for place, model in enumerate(alone):
        single = TrainingContext(config, 0, images)
        single.model = model
        single.optimizer = make_optimizer(model, config.optimizer)
        single.layer_log = TrainingLog(model)
        single.stream = SeedOf(doubles(images), place)
        losses.append(train(TrainStep(single)))
        for name, moments in single.layer_log.compute_and_reset().items():
            close(seen[place][name].variance, moments.variance)
            close(seen[place][name].mean, moments.mean)
    assert torch.tensor(losses).sum(0).tolist() == pytest.approx(sums, rel=1e-6)
    stacked = stack.stacked()
    for place, model in enumerate(alone):
        for name, tensor in model.state_dict().items():
            close(stacked[name][place], tensor, name)


def test_a_stack_can_be_captured(recorded_graphs):
    """Its batches begin with the copies, not with the images: no graph is looked up by that."""
    config, images, models = parts()
    context = stacked_context(TrainingContext(config, 0, images), models)
    step = CapturedStep(context, compile=False)
    step.prepare()
    assert (1, 8) in step._graphs


def close(a, b, message=None):
    # Losses are taken in float32, which now and then rounds their gradients differently.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=message)


def test_each_seed_has_noise_of_its_own():
    _, _, models = parts("gaussian")
    stack = Stack([copy.deepcopy(models[0]) for _ in range(SEEDS)]).train()
    x = torch.randn(1, 8, 3, 32, 32).expand(SEEDS, -1, -1, -1, -1)
    quiet = stack.eval()(x)
    torch.testing.assert_close(quiet[0], quiet[1])
    noisy = stack.train()(x)
    assert not torch.allclose(noisy[0], noisy[1], rtol=0.1)


def test_batches_are_those_of_the_seeds_and_differ():
    _, images, _ = parts()
    stream = train_stream(images, 8, Augment(crop=4, flip=True))
    many = StackedStream(stream, SEEDS).epoch(7, skip=1)
    ones = [stream.epoch(seed_of(7, place), skip=1) for place in range(SEEDS)]
    count = 0
    for x, labels in many:
        for place, one in enumerate(ones):
            own, own_labels = next(one)
            assert torch.equal(x[place], own)
            assert torch.equal(labels[place], own_labels)
        assert not torch.equal(x[0], x[1])
        count += 1
    assert count == STEPS - 1


def test_an_average_without_a_momentum_is_refused():
    model = torch.nn.Sequential(BatchNorm(3, momentum=None))
    with pytest.raises(ValueError, match="0: a stack has batch norm with a momentum only"):
        Stack([model])
