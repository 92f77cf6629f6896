"""The cost of more sites: what is timed is training that really measures them."""

import torch

from benchmarks.cases import Case
from benchmarks.sites import Contender, config_of, costs


def test_pairs_of_training_with_fewer_and_with_more_sites():
    made = {}

    def make(sites):
        config = config_of(Case("preresnet-8", 8, "dropout"), "group norm", sites)
        return made.setdefault(sites, Contender(config, steps=2))

    found = list(costs(make, "norms", pairs=3))
    assert len(found) == 3
    assert all(-1 < cost < 100 for cost in found)
    assert made["bn"].context.layer_log.compute_and_reset() == {}
    logged = made["norms"].context.layer_log.compute_and_reset()
    assert len(logged) == 7
    assert all(torch.isfinite(moments.variance).all() for moments in logged.values())
