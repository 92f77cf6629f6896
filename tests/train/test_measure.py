"""Passes that serve several measurements, against a pass for each."""

import pytest
import torch

from tests.train.test_scores import make_context
from vshift.shift.modes import restoring_state
from vshift.shift.stats import site_stats
from vshift.train.measure import eval_moments, evaluate_training, measure_layers
from vshift.train.scores import evaluate


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


def test_layer_rows_explain_the_shift(measured_run):
    last = [row for row in measured_run.layers() if row["epoch"] == 2]
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
    assert all(row["local_ratio"] is None for row in measured_run.layers() if row["epoch"] == 1)
