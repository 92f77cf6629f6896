"""Seeds derived from (seed, epoch, purpose), and the batches of evaluations."""

from dataclasses import replace

import torch

from tests.configs import make_config
from vshift.data import load
from vshift.train.context import TrainingContext, derive_seed


def test_every_argument_matters_and_nothing_else():
    assert derive_seed(0, 1, "data") == derive_seed(0, 1, "data")
    seeds = {derive_seed(s, e, p) for s in range(20) for e in range(20) for p in ("data", "noise")}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_are_pinned():
    """Another value would silently make every old run irreproducible."""
    assert derive_seed(0, 1, "data") == 2396145807
    assert derive_seed(7, 0, "weights") == 134603374


def test_batches_are_random_samples_though_files_come_class_by_class():
    """In the order of the files every test batch would hold one class and its statistics."""
    config = make_config()
    images = load(config.data, "cpu")
    order = images.test.labels.argsort()
    part = replace(images.test, images=images.test.images[order], labels=images.test.labels[order])
    context = TrainingContext(config, 0, replace(images, test=part))
    first = next(iter(context.plain(part)()))[1]
    assert len(first.unique()) == 10
    seen = torch.cat([labels for _, labels in context.plain(part)()])
    assert torch.equal(seen.sort().values, part.labels.sort().values)
    again = torch.cat([labels for _, labels in context.plain(part)()])
    assert torch.equal(seen, again)
