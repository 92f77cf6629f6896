"""Batches and refusals of Monte Carlo scores; tests/shift/test_mode_matrix.py has the scores."""

import pytest
import torch

from tests.configs import make_config
from vshift.data import load
from vshift.errors import ConfigError
from vshift.train.context import TrainingContext, build_model
from vshift.train.monte_carlo import _single_batches


def test_monte_carlo_bn_takes_full_batches_as_training_draws_them():
    config = make_config(data={"name": "shapes", "train": 70, "test": 10, "batch_size": 32})
    context = TrainingContext(config, 3, load(config.data, "cpu"))
    batches = list(_single_batches(context, 5))  # an epoch has two full ones and a rest of six
    assert [len(images) for images in batches] == [32] * 5
    assert len({images.sum().item() for images in batches}) == 5
    again = list(_single_batches(context, 5))
    assert all(torch.equal(one, two) for one, two in zip(batches, again, strict=True))
    ghost = config.model_copy(update={"norm": config.norm.model_copy(update={"ghost": 8})})
    groups = list(_single_batches(TrainingContext(ghost, 3, load(config.data, "cpu")), 2))
    assert all(torch.equal(g, b[:8]) for g, b in zip(groups, batches, strict=False))
    few = make_config(data={"name": "shapes", "train": 20, "test": 10, "batch_size": 32})
    small = TrainingContext(few, 3, load(few.data, "cpu"))
    assert [len(images) for images in _single_batches(small, 2)] == [20, 20]


def test_monte_carlo_bn_without_bn_is_refused_before_training():
    config = make_config(norm={"kind": "none"}, measure={"monte_carlo_bn": 4})
    with pytest.raises(ConfigError, match=r"measure\.monte_carlo_bn: .* has no BN layer"):
        build_model(config, load(config.data, "cpu"), 0)
