"""The scores of a part of the images."""

import pytest
import torch

from tests.configs import make_config
from vshift.data import load
from vshift.train.context import TEST_BATCH, TrainingContext
from vshift.train.scores import evaluate


def make_context(**sections):
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    config = make_config(network={"name": "preresnet", "depth": 8, "noise": noise}, **sections)
    context = TrainingContext(config, 0, load(config.data, "cpu"))
    for images, _ in context.augmented(1, 2)():  # running statistics that differ from the start's
        context.model(images)
    return context


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
