"""Passes that serve several measurements, against a pass for each."""

import pytest
import torch

from tests.configs import make_config
from vshift.data import load
from vshift.shift.modes import restoring_state
from vshift.shift.stats import site_stats
from vshift.train.context import TEST_BATCH, TrainingContext
from vshift.train.evaluate import eval_moments, evaluate, evaluate_training, measure_layers

pytestmark = pytest.mark.usefixtures("one_thread")


def make_context(**sections):
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    config = make_config(network={"name": "preresnet", "depth": 8, "noise": noise}, **sections)
    context = TrainingContext(config, 0, load(config.data, "cpu"))
    for images, _ in context.augmented(1, 2)():  # running statistics that differ from the start's
        context.model(images)
    return context


@pytest.mark.parametrize(("explain", "measured"), [(2, 3), (3, 2), (0, 2), (2, 2), (99, 99)])
def test_one_pass_in_eval_mode_gives_what_three_gave(explain, measured):
    context = make_context(measure={"explain_batches": explain, "eval_batches": measured})
    epoch = context.config.epochs
    counted = []
    context.model.register_forward_hook(lambda _, inputs, __: counted.append(len(inputs[0])))
    found = evaluate_training(context, epoch)
    assert sum(counted) == len(context.images.train)
    assert context.model.training

    alone = eval_moments(context, epoch)
    assert alone.keys() == found.moments.keys()
    for name, moments in alone.items():
        assert torch.equal(moments.average_variance, found.moments[name].average_variance)
        assert torch.equal(moments.mean, found.moments[name].mean)
        assert moments.batches == found.moments[name].batches
    with restoring_state(context.model), torch.no_grad(), context.autocast():
        context.model.eval()
        images = (images for images, _ in context.augmented(epoch, explain)())
        stats = site_stats(context.model, images, context.sites)
        scores = evaluate(context, context.augmented(epoch, None)())
    assert stats.keys() == found.explaining.keys()
    for name, of_site in stats.items():
        assert torch.equal(of_site.means(), found.explaining[name].means())
        assert torch.equal(of_site.unbiased(), found.explaining[name].unbiased())
    assert scores == found.scores


def test_without_a_log_the_training_images_are_scored(tmp_path):
    context = make_context(measure={"every": 0})
    measured = measure_layers(context, context.config.epochs, tmp_path)
    assert measured.rows == []
    assert measured.train_scores.metrics.count == len(context.images.train)
    assert measure_layers(context, 1, tmp_path).train_scores is None


def test_the_size_of_test_batches_changes_rounding_only(monkeypatch):
    """Against one batch of every image, in float64."""
    context = make_context(hardware={"device": "cpu", "precision": "float32"})
    context.model.eval()
    part = context.images.test
    monkeypatch.setitem(TEST_BATCH, "cpu", 7)
    small = evaluate(context, context.to_test(part)).metrics
    whole = [torch.cat(parts) for parts in zip(*context.to_test(part), strict=True)]
    with torch.no_grad():
        output = context.model.double()(whole[0].double())
        loss = torch.nn.functional.cross_entropy(output, whole[1])
    assert small.count == len(part)
    assert small.loss == pytest.approx(float(loss), rel=1e-5)
    assert small.accuracy == 100 * float((output.argmax(1) == whole[1]).double().mean())
